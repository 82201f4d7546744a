# `nix run .#demo` and `nix run .#vmtest`.
{
  pkgs,
  oncache,
  scenarios,
}:
let
  inherit (pkgs) lib;
  testbed = oncache.overrideAttrs {
    pname = "oncache-demo";
    buildPhase = "cargo build --release --locked --offline -p oncache-testbed --bin demo";
    doCheck = false;
    installPhase = "install -Dm755 target/release/demo $out/bin/demo";
  };
  program = name: application: {
    type = "app";
    program = lib.getExe application;
    meta.description = name;
  };
in
{
  demo = program "Two hosts with and without the caches, as root" (
    pkgs.writeShellApplication {
      name = "oncache-demo";
      runtimeInputs = [
        pkgs.iproute2
        pkgs.iperf3
        pkgs.nftables
        pkgs.procps
      ];
      text = "exec ${testbed}/bin/demo ${lib.getExe oncache}";
    }
  );

  # The scenarios are checks, too; here they run outside the sandbox, with the driver's own arguments
  # (`--interactive` for a Python prompt).
  vmtest = program "Run scenarios on virtual machines: all, or those named" (
    pkgs.writeShellApplication {
      name = "oncache-vmtest";
      text = ''
        declare -A drivers=(
        ${lib.concatStrings (
          lib.mapAttrsToList (name: test: ''
            [${name}]=${test.driver}/bin/nixos-test-driver
          '') scenarios
        )})
        names=()
        while [[ $# -gt 0 && $1 != -* ]]; do
          names+=("$1")
          shift
        done
        if [[ ''${#names[@]} == 0 ]]; then
          mapfile -t names < <(printf '%s\n' "''${!drivers[@]}" | sort)
        fi
        for name in "''${names[@]}"; do
          driver=''${drivers[$name]:-}
          if [[ -z $driver ]]; then
            echo "vmtest: $name: no such scenario; there are ''${!drivers[*]}" >&2
            exit 2
          fi
          "$driver" "$@"
        done
      '';
    }
  );
}
