# What `make test` does, as derivations: formatting, clippy, and the namespace tests, which take root and
# so a virtual machine.
{ pkgs, oncache }:
let
  inherit (pkgs) lib;
  sources = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../rustfmt.toml
      ../build.rs
      ../build
      ../src
      ../bpf
      ../tests
      ../docs
      ../nixos
      ../flake.nix
    ];
  };

  # The same build with another end: no package, but a verdict.
  verdict =
    name: command:
    oncache.overrideAttrs (old: {
      pname = "oncache-${name}";
      src = sources;
      nativeBuildInputs = old.nativeBuildInputs ++ [
        pkgs.clippy
        pkgs.rustfmt
      ];
      buildPhase = command;
      doCheck = false;
      installPhase = "touch $out";
      dontFixup = true;
    });

  # The test programs look for the binary where it was when they were built, and for their sources.
  namespaceTests = oncache.overrideAttrs {
    pname = "oncache-namespace-tests";
    src = sources;
    buildPhase = ''
      cargo test --workspace --test '*' --locked --offline --no-run
    '';
    doCheck = false;
    installPhase = ''
      mkdir -p $out/tests $out/source/target/debug
      pwd >$out/built-in
      cp -r bpf docs nixos src tests Cargo.toml flake.nix $out/source/
      cp target/debug/oncache $out/source/target/debug/
      find target/debug/deps -maxdepth 1 -type f -executable ! -name '*.so' -exec cp -t $out/tests {} +
    '';
    dontFixup = true;
  };
in
{
  formatting = verdict "formatting" ''
    cargo fmt --all --check
    cargo fmt --manifest-path bpf/Cargo.toml --all --check
  '';

  clippy = verdict "clippy" ''
    cargo clippy --workspace --all-targets --locked --offline -- -D warnings
  '';

  namespace-tests = pkgs.testers.runNixOSTest {
    name = "oncache-namespace-tests";
    nodes.machine = {
      virtualisation = {
        cores = 2;
        memorySize = 4096;
      };
      boot.kernelModules = (import ./host.nix).kernelModules;
      environment.systemPackages = [
        pkgs.bpftools
        pkgs.conntrack-tools
        pkgs.ethtool
        pkgs.iperf3
        pkgs.iproute2
        pkgs.nftables
        pkgs.nix
        pkgs.procps
      ];
    };
    testScript = ''
      machine.wait_for_unit("multi-user.target")
      tests = "${namespaceTests}"
      source = machine.succeed(f"cat {tests}/built-in").strip()
      machine.succeed(f"mkdir -p $(dirname {source}) && ln -s {tests}/source {source}")
      programs = machine.succeed(f"ls {tests}/tests").split()
      assert programs, "no test was built"
      for program in programs:
          with subtest(program):
              machine.succeed(f"cd {source} && {tests}/tests/{program} >&2", timeout=1800)
    '';
  };
}
