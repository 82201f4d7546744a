# `nix develop`: all that building and testing takes, on NixOS or elsewhere.
{
  mkShell,
  rustc,
  cargo,
  clippy,
  rustfmt,
  bpf-linker,
  bpftools,
  conntrack-tools,
  ethtool,
  iperf3,
  iproute2,
  nftables,
  procps,
}:
mkShell {
  packages = [
    rustc
    cargo
    clippy
    rustfmt
    bpf-linker
    bpftools
    conntrack-tools
    ethtool
    iperf3
    iproute2
    nftables
    procps
  ];
  # build/ebpf.rs looks for Debian's by default. This rustc brings `core` for the programs' target.
  BPF_CARGO = "${cargo}/bin/cargo";
  BPF_RUSTC = "${rustc}/bin/rustc";
}
