# Evaluates the module with nixpkgs' `lib`: options' types and defaults, assertions, what it defines. The
# result is { failures = [ ... ]; passed = N; configurations = { NAME = TOML; }; }; .ci/nix-check reads it.
{ lib }:
let
  stubs = import ./stubs.nix { inherit lib; };
  hosts = import ../hosts.nix;
  host = import ../host.nix;
  render = import ../render.nix;

  program = "/usr/local/sbin/oncache";
  # `lib.getExe` asks for no more of a package.
  package = {
    type = "derivation";
    outPath = "/usr/local/sbin/..";
    meta.mainProgram = "oncache";
    name = "oncache";
  };
  module = import ../module.nix { oncachePackage = _: package; };

  evaluate =
    config:
    (lib.evalModules {
      modules = [
        stubs
        module
        config
      ];
    }).config;
  # The hosts of the scenarios, with whatever else.
  with' =
    extra:
    evaluate {
      imports = [ extra ];
      services.oncache = {
        enable = true;
        settings = hosts.settings "alpha";
      };
    };
  refusals = config: map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);
  fails = value: !(builtins.tryEval (builtins.deepSeq value null)).success;

  # The way back from NixOS's options to the unit's text.
  sections =
    service:
    let
      lists = {
        Wants = service.wants;
        Requires = service.requires;
        After = service.after;
        Before = service.before;
        PartOf = service.partOf;
        Conflicts = service.conflicts;
      };
      install = service.wantedBy;
    in
    {
      Unit =
        service.unitConfig
        // {
          Description = service.description;
          Documentation = builtins.concatStringsSep " " service.documentation;
        }
        // lib.filterAttrs (_: names: names != [ ]) lists;
      Service = service.serviceConfig;
    }
    // lib.optionalAttrs (install != [ ]) { Install.WantedBy = install; };
  # The reference has another path for the program.
  unitText =
    service:
    lib.replaceStrings
      [ "${package}/bin/oncache" "/run/current-system/sw/bin/oncache" ]
      [ program program ]
      (render.unit (sections service));
  reference =
    path:
    let
      text = builtins.readFile (../reference + "/${path}");
    in
    # Without the line that says where it comes from.
    lib.concatStringsSep "\n" (lib.tail (lib.splitString "\n" text));

  plain = with' { };
  minimal = evaluate {
    services.oncache = {
      enable = true;
      settings.overlay = {
        subnet = "10.42.1.0/24";
        network = "10.42.0.0/16";
        vni = 42;
      };
    };
  };
  full = with' {
    networking.firewall.backend = "nftables";
    networking.firewall.filterForward = true;
    systemd.network.enable = true;
    containers.web = { };
    services.oncache = {
      openFirewall = true;
      forwarding = true;
      settings.node.underlay = lib.mkForce "eth1.100";
      settings.cache.lease = "10s";
      containers.web.address = "10.42.1.10";
    };
  };
  iptables = with' { services.oncache.openFirewall = true; };
  rules = import ../firewall.nix {
    settings = hosts.settings "alpha";
    open = true;
    reversePath = true;
  };

  checks = {
    "disabled, it defines nothing" =
      let
        off = evaluate { };
      in
      off.systemd.services == { }
      && off.boot.kernelModules == [ ]
      && off.networking.dhcpcd.denyInterfaces == [ ]
      && off.environment.etc == { };

    "the daemon's unit is the reference's" =
      unitText plain.systemd.services.oncache == reference "systemd/system/oncache.service";
    "the removing unit is the reference's" =
      unitText plain.systemd.services.oncache-down == reference "systemd/system/oncache-down.service";
    "the removing unit is not started by anything" =
      plain.systemd.services.oncache-down.wantedBy == [ ]
      && !plain.systemd.services.oncache-down.restartIfChanged;
    "a changed configuration is a reload" =
      plain.systemd.services.oncache.reloadTriggers
      == [ plain.environment.etc."oncache/config.toml".source ];

    "defaults: name of the host, port, fast path" =
      let
        s = minimal.services.oncache.settings;
      in
      s.node.name == "nixos" && s.overlay.port == 4789 && s.cache.enabled && s.peers == [ ];
    "what is not set is not in the file" =
      !(lib.hasInfix "null" minimal.environment.etc."oncache/config.toml".source)
      && !(lib.hasInfix "underlay" minimal.environment.etc."oncache/config.toml".source);
    "keys without a type of their own are kept" =
      lib.hasInfix ''lease = "10s"'' full.environment.etc."oncache/config.toml".source;
    "the file is checked at the build where it can be" =
      let
        config = with' { services.oncache.validate = true; };
      in
      lib.hasInfix "check --syntax-only --config" config.environment.etc."oncache/config.toml".source.check;

    "a VNI of 25 bits is refused" = fails (
      (with' { services.oncache.settings.overlay.vni = lib.mkForce 16777216; })
      .services.oncache.settings.overlay.vni
    );
    "a port of 17 bits is refused" = fails (
      (with' { services.oncache.settings.overlay.port = lib.mkForce 65536; })
      .services.oncache.settings.overlay.port
    );
    "an overlay without a subnet is refused" = fails (
      (evaluate {
        services.oncache.enable = true;
        services.oncache.settings.overlay = {
          network = "10.42.0.0/16";
          vni = 42;
        };
      }).environment.etc."oncache/config.toml".source
    );
    "a peer without an address is refused" = fails (
      (with' {
        services.oncache.settings.peers = lib.mkForce [ { name = "beta"; } ];
      }).environment.etc."oncache/config.toml".source
    );

    "nothing is asserted of a good configuration" =
      refusals plain == [ ] && refusals minimal == [ ] && refusals full == [ ] && refusals iptables == [ ];
    "in a container it is refused" =
      lib.length (refusals (with' { boot.isContainer = true; })) == 1;
    "forwarding takes a device" =
      lib.length (
        refusals (with' {
          services.oncache.forwarding = true;
          services.oncache.settings.node.underlay = lib.mkForce null;
        })
      ) == 1;
    "firewalld is not opened" =
      lib.length (
        refusals (with' {
          networking.firewall.backend = "firewalld";
          services.oncache.openFirewall = true;
        })
      ) == 1;
    "two containers with one address are refused" =
      lib.length (
        refusals (with' {
          services.oncache.containers.a.address = "10.42.1.10";
          services.oncache.containers.b.address = "10.42.1.10";
        })
      ) == 1;
    "a container with a network of its own is refused" =
      lib.length (
        refusals (with' {
          containers.web.privateNetwork = true;
          services.oncache.containers.web = { };
        })
      ) == 1;
    "a container's name is no command line" =
      lib.length (refusals (with' { services.oncache.containers."web --ip" = { }; })) == 1;

    "an old kernel is warned of" =
      lib.length (with' { boot.kernelPackages.kernel.version = "5.10.1"; }).warnings == 1
      && plain.warnings == [ ];
    "a flushed ruleset is warned of" =
      lib.length
        (with' {
          networking.nftables.enable = true;
          networking.nftables.flushRuleset = true;
        }).warnings == 1;

    "nftables: rules for the three chains" =
      full.networking.firewall.extraInputRules != ""
      && lib.hasInfix "oncache-vx0" full.networking.firewall.extraReversePathFilterRules
      && lib.hasInfix "eth1.100" full.networking.firewall.extraForwardRules
      && full.networking.firewall.extraCommands == "";
    "iptables: the same in commands" =
      iptables.networking.firewall.extraCommands == rules.iptables
      && iptables.networking.firewall.extraInputRules == "";
    "closed unless asked for" =
      !(lib.hasInfix "4789" plain.networking.firewall.extraCommands);
    "no rule where there is no firewall" =
      let
        config = with' {
          networking.firewall.enable = false;
          services.oncache.openFirewall = true;
        };
      in
      config.networking.firewall.extraCommands == "" && config.networking.firewall.extraInputRules == "";
    "no rule for a filter that is off" =
      (with' { networking.firewall.checkReversePath = false; }).networking.firewall.extraCommands == "";

    "forwarding is the underlay's, with the dot of its name" =
      full.boot.kernel.sysctl == { "net.ipv4.conf.eth1/100.forwarding" = true; }
      && plain.boot.kernel.sysctl == { };
    "udev and networkd leave the devices alone" =
      full.systemd.network.links."10-oncache".linkConfig == { MACAddressPolicy = "none"; }
      && full.systemd.network.networks."10-oncache".linkConfig == { Unmanaged = true; }
      && full.systemd.network.config.networkConfig == { ManageForeignRoutes = false; }
      && plain.systemd.network.networks == { }
      && plain.systemd.network.links ? "10-oncache";
    "NetworkManager and dhcpcd, too" =
      lib.elem "interface-name:oncache0" plain.networking.networkmanager.unmanaged
      && plain.networking.dhcpcd.denyInterfaces == host.devices;

    "a container lives in a namespace that oncache makes" =
      full.containers.web.networkNamespace == "/run/netns/web";
    "the namespace comes before the container and goes after it" =
      let
        place = full.systemd.services.oncache-container-web;
        container = full.systemd.services."container@web";
      in
      place.before == [ "container@web.service" ]
      && place.partOf == [ "container@web.service" ]
      && place.wantedBy == [ ]
      && !place.restartIfChanged
      && place.serviceConfig.ExecStart
      == "/run/current-system/sw/bin/oncache container add web --ip 10.42.1.10"
      && container.requires == [ "oncache-container-web.service" ]
      && container.after == [ "oncache-container-web.service" ];
  };
  failed = lib.attrNames (lib.filterAttrs (_: ok: !ok) checks);
in
{
  failures = failed;
  passed = lib.length (lib.attrNames checks) - lib.length failed;
  configurations = lib.mapAttrs (_: config: config.environment.etc."oncache/config.toml".source) {
    inherit plain minimal full;
  };
}
