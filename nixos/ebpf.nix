# The eBPF programs: an object for the kernel, which package.nix embeds by BPF_OBJECT.
#
# The compiler is the stable rustc of the same nixpkgs: it is built with `core` for bpfel-unknown-none,
# so that nothing of the standard library is built here. RUSTC_BOOTSTRAP=1, because the target is of tier 3.
# bpf-linker must be of that rustc's LLVM, as it is within one nixpkgs.
{
  lib,
  stdenv,
  rustPlatform,
  rustc,
  cargo,
  bpf-linker,
}:
let
  # As in build/ebpf.rs, which says why; nixos/check compares.
  flags = [
    "-Ctarget-cpu=v3"
    "-Cdebuginfo=2"
    "-Clink-arg=--btf"
    "-Clink-arg=--disable-expand-memcpy-in-order"
  ];
in
stdenv.mkDerivation {
  pname = "oncache-ebpf";
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

  src = lib.fileset.toSource {
    root = ../bpf;
    fileset = lib.fileset.unions [
      ../bpf/Cargo.toml
      ../bpf/Cargo.lock
      ../bpf/abi
      ../bpf/src
    ];
  };
  cargoDeps = rustPlatform.importCargoLock { lockFile = ../bpf/Cargo.lock; };

  nativeBuildInputs = [
    rustPlatform.cargoSetupHook
    rustc
    cargo
    bpf-linker
  ];

  env = {
    RUSTC_BOOTSTRAP = 1;
    CARGO_ENCODED_RUSTFLAGS = lib.concatStringsSep (builtins.fromJSON ''"\u001f"'') flags;
  };

  buildPhase = ''
    runHook preBuild
    # As build.rs does: no directory of the build in BTF and debugging information. Of two that match, the
    # later counts.
    separator=$'\x1f'
    CARGO_ENCODED_RUSTFLAGS+="$separator--remap-path-prefix=$NIX_BUILD_TOP=/cargo"
    CARGO_ENCODED_RUSTFLAGS+="$separator--remap-path-prefix=$PWD=/oncache/bpf"
    export CARGO_ENCODED_RUSTFLAGS
    cargo build --release --locked --offline --target bpfel-unknown-none
    runHook postBuild
  '';

  installPhase = ''
    runHook preInstall
    install -Dm644 target/bpfel-unknown-none/release/oncache $out/lib/oncache.bpf.o
    runHook postInstall
  '';

  # They know nothing of this architecture, and would take the BTF for debugging symbols.
  dontStrip = true;
  dontPatchELF = true;

  meta = {
    description = "The eBPF programs of oncache";
    license = [
      lib.licenses.mit
      lib.licenses.gpl2Only
    ];
    platforms = lib.platforms.linux;
  };
}
