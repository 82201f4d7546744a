# Stand-ins for the NixOS options that the module defines or reads, where nixpkgs' modules are not at hand:
# their names and types, none of what they do. `pkgs` has what the module asks of it.
{ lib }:
let
  inherit (lib) mkOption types;
  option =
    type: default:
    mkOption { inherit type default; };
  list = option (types.listOf types.str) [ ];
  lines = option types.lines "";
  text = option types.str "";
  bool = option types.bool;
  anything = option (types.attrsOf types.anything) { };

  service = types.submodule {
    options = {
      description = text;
      documentation = list;
      wants = list;
      requires = list;
      after = list;
      before = list;
      partOf = list;
      conflicts = list;
      wantedBy = list;
      unitConfig = anything;
      serviceConfig = anything;
      reloadTriggers = option (types.listOf types.unspecified) [ ];
      restartIfChanged = bool true;
      stopIfChanged = bool true;
    };
  };

  section = types.submodule {
    options = {
      matchConfig = anything;
      linkConfig = anything;
    };
  };

  container = types.submodule {
    options = {
      path = option types.path "/nowhere";
      privateNetwork = bool false;
      networkNamespace = option (types.nullOr types.path) null;
      interfaces = list;
      macvlans = list;
    };
  };

  tomlValue =
    types.nullOr (
      types.oneOf [
        types.bool
        types.int
        types.float
        types.str
        (types.attrsOf tomlValue)
        (types.listOf tomlValue)
      ]
    )
    // {
      description = "TOML value";
    };
in
{
  options = {
    assertions = option (types.listOf types.unspecified) [ ];
    warnings = list;

    boot.isContainer = bool false;
    boot.kernelModules = list;
    boot.kernel.sysctl = anything;
    boot.kernelPackages = option types.unspecified { kernel.version = "6.12"; };

    containers = option (types.attrsOf container) { };
    environment.systemPackages = option (types.listOf types.unspecified) [ ];
    environment.etc = option (types.attrsOf (
      types.submodule {
        options.source = mkOption { type = types.unspecified; };
      }
    )) { };

    networking.hostName = option types.str "nixos";
    networking.dhcpcd.denyInterfaces = list;
    networking.networkmanager.unmanaged = list;
    networking.nftables.enable = bool false;
    networking.nftables.flushRuleset = bool false;
    networking.firewall = {
      enable = bool true;
      backend = option (types.enum [
        "iptables"
        "nftables"
        "firewalld"
      ]) "iptables";
      checkReversePath = option (types.either types.bool (types.enum [
        "strict"
        "loose"
      ])) true;
      filterForward = bool false;
      extraCommands = lines;
      extraInputRules = lines;
      extraReversePathFilterRules = lines;
      extraForwardRules = lines;
    };

    systemd.network.enable = bool false;
    systemd.network.networks = option (types.attrsOf section) { };
    systemd.network.links = option (types.attrsOf section) { };
    systemd.network.config.networkConfig = anything;
    systemd.services = option (types.attrsOf service) { };
    users.groups = anything;
  };

  config._module.args.pkgs = {
    stdenv.buildPlatform.canExecute = _: false;
    stdenv.hostPlatform = { };
    formats.toml = _: {
      type = tomlValue;
      # Text in the place of a file.
      generate = _: (import ../render.nix).toml;
    };
    runCommand = _: _: script: {
      check = script;
    };
  };
}
