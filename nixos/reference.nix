# The files for hosts without NixOS, path -> text. `ONCACHE_WRITE_REFERENCE=1 cargo test --test shipping nix::` writes
# them to reference/, and without the variable that test compares.
let
  inherit (import ./render.nix) unit toml;
  host = import ./host.nix;
  scenarios = import ./hosts.nix;
  units = import ./unit.nix { };
  units252 = import ./unit.nix { notifyReload = false; };
  note = ''
    # Made from nixos/ of oncache's sources, which say why each line is there.
  '';
  lines = list: builtins.concatStringsSep "" (map (line: "${line}\n") list);
in
builtins.mapAttrs (_: text: note + text) {
  "systemd/system/oncache.service" = unit units."oncache.service";
  "systemd/system/oncache-down.service" = unit units."oncache-down.service";
  # For one container; copy it for others.
  "systemd/system/oncache-container-web.service" = unit (
    units.container {
      name = "web";
      address = "10.42.1.10";
    }
  );
  # systemd before 253: Debian 12.
  "systemd-252/system/oncache.service" = unit units252."oncache.service";
  "systemd/network/10-oncache.network" = unit host.networkd;
  "systemd/network/10-oncache.link" = unit host.link;
  "systemd/networkd.conf.d/oncache.conf" = unit host.networkdSettings;
  "modules-load.d/oncache.conf" = lines host.kernelModules;
  "NetworkManager/conf.d/oncache.conf" = ''
    [keyfile]
    unmanaged-devices=${builtins.concatStringsSep ";" host.networkManager}
  '';

  # The hosts of vmtests/.
  "hosts/alpha/config.toml" = toml (scenarios.settings "alpha");
  "hosts/beta/config.toml" = toml (scenarios.settings "beta");
  "hosts/gamma/config.toml" = toml (scenarios.settings "gamma");
}
