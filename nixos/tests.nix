# The scenarios of vmtests/ on NixOS machines: the same files that the bundled runner runs on Debian's.
#
# vmtests/scenarios.json names them: { "two-hosts": { "machines": [ "alpha", "beta" ], "kernel": "6.12",
# "containers": { "alpha": { "web": "10.42.1.10" } } } }; the kernel is NixOS's default unless it is given, and so is
# the containers' device; containers are connected by units at each boot. The script of a scenario is vmtests/NAME.py
# unless another is given; its machines are those of hosts.nix.
{ pkgs, module }:
let
  inherit (pkgs) lib;
  data = import ./hosts.nix;
  list = ../vmtests/scenarios.json;
  scenarios = if builtins.pathExists list then lib.importJSON list else { };

  # The scenarios' own, by the name of the file.
  tools = lib.mapAttrsToList (
    name: _: pkgs.writeScriptBin name (builtins.readFile (../vmtests/tools + "/${name}"))
  ) (builtins.readDir ../vmtests/tools);

  # Without a NixOS container in it, hence not by services.oncache.containers.
  containerUnit =
    name: address:
    let
      unit = (import ./unit.nix { program = "/run/current-system/sw/bin/oncache"; }).container {
        inherit name address;
      };
    in
    lib.nameValuePair "oncache-container-${name}" {
      wants = unit.Unit.Wants;
      after = unit.Unit.After;
      unitConfig = { inherit (unit.Unit) StartLimitIntervalSec; };
      serviceConfig = unit.Service;
      wantedBy = unit.Install.WantedBy;
    };

  machine = kernel: containers: device: processors: name: {
    imports = [ module ];
    systemd.services = lib.mapAttrs' containerUnit (containers.${name} or { });
    boot.kernelPackages = lib.mkIf (
      kernel != null
    ) pkgs."linuxPackages_${lib.replaceStrings [ "." ] [ "_" ] kernel}";
    # As on Debian's machines.
    networking.useNetworkd = true;
    networking.useDHCP = false;
    virtualisation = {
      vlans = [ 1 ];
      memorySize = 512;
      cores = processors;
    };
    networking.interfaces.${data.underlay}.ipv4.addresses = lib.mkForce [
      {
        inherit (data.hosts.${name}) address;
        prefixLength = 24;
      }
    ];
    services.oncache = {
      enable = true;
      openFirewall = true;
      settings =
        data.settings name // lib.optionalAttrs (device != null) { container = { inherit device; }; };
    };
    # What the scenarios use; Debian's machines have the same.
    environment.systemPackages = [
      pkgs.bpftools
      pkgs.conntrack-tools
      pkgs.ethtool
      pkgs.iperf3
      pkgs.iproute2
      pkgs.iputils
      pkgs.nftables
      pkgs.python3Minimal
      pkgs.tcpdump
    ]
    ++ tools;
  };

  test =
    name:
    {
      machines,
      kernel ? null,
      device ? null,
      processors ? 1,
      script ? name,
      containers ? { },
      ...
    }:
    pkgs.testers.runNixOSTest {
      name = "oncache-${name}";
      nodes = lib.genAttrs machines (machine kernel containers device processors);
      testScript = builtins.readFile (../vmtests + "/${script}.py");
      # The scripts are the runner's, too, which has no types for the driver's names.
      skipTypeCheck = true;
    };
in
# Those that count instructions are the bundled runner's alone.
lib.mapAttrs' (name: scenario: lib.nameValuePair "vm-${name}" (test name scenario)) (
  lib.filterAttrs (_: scenario: !(scenario.counted or false)) scenarios
)
