# services.oncache for NixOS. `oncachePackage` gives the package for a nixpkgs (flake.nix).
{ oncachePackage }:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    literalExpression
    mkEnableOption
    mkIf
    mkMerge
    mkOption
    types
    ;
  cfg = config.services.oncache;
  host = import ./host.nix;
  program = lib.getExe cfg.package;
  units = import ./unit.nix { inherit program; };
  # For units that must not change, and so be restarted, with every new version: the container would
  # lose its network for a moment.
  containerUnits = import ./unit.nix { program = "/run/current-system/sw/bin/oncache"; };

  format = pkgs.formats.toml { };
  # TOML has no null: what is not set is left out, and the program's default holds.
  given = lib.filterAttrsRecursive (_: value: value != null) cfg.settings;
  rawFile = format.generate "oncache.toml" given;
  checkedFile = pkgs.runCommand "oncache-config.toml" { } ''
    ${program} check --syntax-only --config ${rawFile}
    cp ${rawFile} $out
  '';
  configFile = if cfg.validate then checkedFile else rawFile;

  underlay = cfg.settings.node.underlay;
  inherit (cfg.settings) overlay;

  firewall = config.networking.firewall;
  # Before 25.11 there was no such option but the one of nftables.
  backend =
    firewall.backend or (if config.networking.nftables.enable then "nftables" else "iptables");
  # "loose" is a check, too.
  checksReversePath = firewall.checkReversePath != false;

  rules = import ./firewall.nix {
    settings = given;
    open = cfg.openFirewall;
    reversePath = checksReversePath;
    forward = firewall.filterForward;
    outside = cfg.forwarding;
  };

  # A unit of unit.nix as NixOS has it.
  fromSections =
    sections:
    let
      unit = sections.Unit;
    in
    {
      description = unit.Description;
      documentation = [ unit.Documentation ];
      wants = unit.Wants or [ ];
      after = unit.After or [ ];
      before = unit.Before or [ ];
      partOf = unit.PartOf or [ ];
      conflicts = unit.Conflicts or [ ];
      wantedBy = sections.Install.WantedBy or [ ];
      unitConfig = removeAttrs unit [
        "Description"
        "Documentation"
        "Wants"
        "After"
        "Before"
        "PartOf"
        "Conflicts"
      ];
      serviceConfig = sections.Service;
    };

  containerUnit = name: "oncache-container-${name}";
  addresses = lib.filter (address: address != null) (
    lib.mapAttrsToList (_: container: container.address) cfg.containers
  );

  peer = types.submodule {
    freeformType = format.type;
    options = {
      name = mkOption {
        type = types.str;
        description = "The host's name.";
        example = "beta";
      };
      address = mkOption {
        type = types.str;
        description = "The host's underlay address.";
        example = "192.168.50.12";
      };
      subnet = mkOption {
        type = types.str;
        description = "The addresses of its containers.";
        example = "10.42.2.0/24";
      };
    };
  };

  settings = types.submodule {
    freeformType = format.type;
    # Only what this module reads has a type of its own; the program judges all of it, and knows better.
    options = {
      node.name = mkOption {
        type = types.str;
        default = config.networking.hostName;
        defaultText = literalExpression "config.networking.hostName";
        description = "This host's name among its peers.";
      };
      node.underlay = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "eth1";
        description = "The device that carries VXLAN; without, that of the default route.";
      };
      overlay.subnet = mkOption {
        type = types.str;
        example = "10.42.1.0/24";
        description = "The addresses of this host's containers.";
      };
      overlay.network = mkOption {
        type = types.str;
        example = "10.42.0.0/16";
        description = "The addresses of all hosts' containers.";
      };
      overlay.vni = mkOption {
        type = types.ints.between 1 16777215;
        example = 42;
        description = "The VXLAN network identifier, the same on every host.";
      };
      overlay.port = mkOption {
        type = types.port;
        default = 4789;
        description = "The UDP port of VXLAN, the same on every host.";
      };
      peers = mkOption {
        type = types.listOf peer;
        default = [ ];
        description = "The other hosts.";
      };
      cache.enabled = mkOption {
        type = types.bool;
        default = true;
        description = "Whether there is a fast path; without, the plain overlay.";
      };
    };
  };
in
{
  options.services.oncache = {
    enable = mkEnableOption "oncache, a container overlay network with an eBPF fast path";

    package = mkOption {
      type = types.package;
      default = oncachePackage pkgs;
      defaultText = literalExpression "the oncache of this module's flake";
      description = "The oncache package to use.";
    };

    settings = mkOption {
      type = settings;
      default = { };
      example = literalExpression ''
        {
          node.underlay = "eth1";
          overlay = {
            subnet = "10.42.1.0/24";
            network = "10.42.0.0/16";
            vni = 42;
          };
          peers = [
            { name = "beta"; address = "192.168.50.12"; subnet = "10.42.2.0/24"; }
          ];
        }
      '';
      description = ''
        The content of /etc/oncache/config.toml. Every key of docs/configuration.md may be given; a
        fault is one of the build.
      '';
    };

    validate = mkOption {
      type = types.bool;
      default = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
      defaultText = literalExpression "pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform";
      description = "Whether the build runs `oncache check --syntax-only` on the settings.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the firewall lets VXLAN in: {option}`settings.overlay.port` by UDP, from the addresses of
        {option}`settings.peers` alone, since a VXLAN device takes packets from anybody.
      '';
    };

    forwarding = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether containers reach the world outside the overlay: sets
        `net.ipv4.conf.UNDERLAY.forwarding`, so that replies to them are forwarded. It makes the host
        a router for others on the underlay too, unless its firewall says otherwise
        ({option}`networking.firewall.filterForward`).
      '';
    };

    containers = mkOption {
      type = types.attrsOf (
        types.submodule {
          options.address = mkOption {
            type = types.nullOr types.str;
            default = null;
            example = "10.42.1.10";
            description = "Its address in the overlay; without, the next free one of the subnet.";
          };
        }
      );
      default = { };
      example = literalExpression ''{ web.address = "10.42.1.10"; }'';
      description = ''
        NixOS containers ({option}`containers.<name>`) of this host that are connected to the overlay, by
        name. Such a container lives in a network namespace that oncache makes, with the device
        `eth0` and the address. Another address is taken when the container is restarted.
      '';
    };
  };

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = [
        {
          assertion = !config.boot.isContainer;
          message = "services.oncache: a NixOS container has no kernel of its own to load programs into; enable it on the host, and connect the container by services.oncache.containers.";
        }
        {
          assertion = cfg.forwarding -> underlay != null;
          message = "services.oncache.forwarding: which device is it for? Set services.oncache.settings.node.underlay.";
        }
        {
          assertion = cfg.openFirewall -> backend != "firewalld";
          message = "services.oncache.openFirewall: not for firewalld; open UDP port ${toString overlay.port} to the peers in its zone of the underlay.";
        }
        {
          assertion = lib.allUnique addresses;
          message = "services.oncache.containers: two of them have the same address.";
        }
      ]
      ++ lib.concatLists (
        lib.mapAttrsToList (name: _: [
          {
            assertion =
              let
                container = config.containers.${name};
              in
              !container.privateNetwork && container.interfaces == [ ] && container.macvlans == [ ];
            message = "services.oncache.containers.${name}: oncache gives the container its network; unset privateNetwork, interfaces and macvlans of containers.${name}.";
          }
          {
            # What becomes part of a unit's name and a command line; src/config/value.rs has the same.
            assertion = builtins.match "[A-Za-z0-9][A-Za-z0-9._-]{0,62}" name != null;
            message = "services.oncache.containers.${name}: a name has 1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit.";
          }
        ]) cfg.containers
      );

      warnings =
        lib.optional
          (
            cfg.settings.cache.enabled
            && lib.versionOlder config.boot.kernelPackages.kernel.version "5.15"
          )
          "services.oncache: Linux ${config.boot.kernelPackages.kernel.version} is too old for the fast path, which needs 5.15; there will be the plain overlay alone."
        ++
          lib.optional (config.networking.nftables.enable && config.networking.nftables.flushRuleset)
            "services.oncache: networking.nftables.flushRuleset removes oncache's tables at every reload of the firewall, until the daemon has written them again. Set it to false.";

      environment.systemPackages = [ cfg.package ];
      environment.etc."oncache/config.toml".source = configFile;
      # Its members may use the daemon's socket.
      users.groups.oncache = { };

      boot.kernelModules = host.kernelModules;
      boot.kernel.sysctl = mkIf (cfg.forwarding && underlay != null) {
        # A dot in a device's name is a slash there (sysctl.d(5)).
        "net.ipv4.conf.${lib.replaceStrings [ "." ] [ "/" ] underlay}.forwarding" = true;
      };

      # .link files are udev's, networkd or not.
      systemd.network.links."10-oncache" = {
        matchConfig = host.link.Match;
        linkConfig = host.link.Link;
      };
      systemd.network.networks = mkIf config.systemd.network.enable {
        "10-oncache" = {
          matchConfig = host.networkd.Match;
          linkConfig = host.networkd.Link;
        };
      };
      systemd.network.config = mkIf config.systemd.network.enable {
        networkConfig.ManageForeignRoutes = lib.mkDefault host.networkdSettings.Network.ManageForeignRoutes;
      };
      networking.networkmanager.unmanaged = host.networkManager;
      networking.dhcpcd.denyInterfaces = host.devices;

      systemd.services.oncache = fromSections units."oncache.service" // {
        # A new file is read while packets flow.
        reloadTriggers = [ configFile ];
        # One restart at the end of a switch, rather than a stop at its beginning: the shorter absence.
        stopIfChanged = false;
      };
      systemd.services.oncache-down = fromSections units."oncache-down.service" // {
        # A switch to another version must not run it.
        restartIfChanged = false;
      };
    }

    (mkIf (firewall.enable && backend == "nftables") {
      networking.firewall = {
        extraInputRules = rules.nftables.input;
        extraReversePathFilterRules = rules.nftables.reversePath;
        extraForwardRules = rules.nftables.forward;
      };
    })

    (mkIf (firewall.enable && backend == "iptables") {
      networking.firewall.extraCommands = rules.iptables;
    })

    {
      systemd.services = mkMerge (
        lib.mapAttrsToList (name: container: {
          ${containerUnit name} =
            fromSections (
              containerUnits.container {
                inherit name;
                inherit (container) address;
                owner = "container@${name}.service";
              }
            )
            // {
              # With the container, or not at all.
              wantedBy = [ ];
              restartIfChanged = false;
            };
          "container@${name}" = {
            requires = [ "${containerUnit name}.service" ];
            after = [ "${containerUnit name}.service" ];
          };
        }) cfg.containers
      );
      containers = lib.mapAttrs (name: _: { networkNamespace = "/run/netns/${name}"; }) cfg.containers;
    }
  ]);
}
