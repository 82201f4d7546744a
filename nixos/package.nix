{
  lib,
  rustPlatform,
  installShellFiles,
  makeBinaryWrapper,
  nftables,
  oncache-ebpf,
}:
rustPlatform.buildRustPackage {
  pname = "oncache";
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

  # Only what the build reads: a change of documentation or of nixos/ builds nothing anew.
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../build.rs
      ../build
      ../src
      ../bpf/abi
      # build.rs makes the ABI's name of it.
      ../bpf/src/maps.rs
      ../docs/oncache.8
      ../docs/config.example.toml
      # The unit tests hold them against the code.
      ../docs/configuration.md
      # A member of the workspace, without which cargo does not read it.
      ../tests/testbed
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  env.BPF_OBJECT = "${oncache-ebpf}/lib/oncache.bpf.o";

  # The namespace tests take root; they are run by the virtual machines' host (flake.nix, `checks`).
  cargoTestFlags = [
    "--lib"
    "--bins"
  ];

  nativeBuildInputs = [
    installShellFiles
    makeBinaryWrapper
  ];

  postInstall = ''
    installManPage docs/oncache.8
    install -Dm644 docs/config.example.toml $out/share/doc/oncache/config.example.toml
    wrapProgram $out/bin/oncache --prefix PATH : ${lib.makeBinPath [ nftables ]}
  '';

  passthru = { inherit oncache-ebpf; };

  meta = {
    description = "A container overlay network with a cache-based eBPF fast path";
    license = lib.licenses.mit;
    mainProgram = "oncache";
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
  };
}
