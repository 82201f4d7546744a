//! What is shipped beside the binary: man page, units, NixOS module.

mod man_page;
mod nix;
mod nixos_firewall;
mod service_manager;

/// The binary under test.
const ONCACHE: &str = env!("CARGO_BIN_EXE_oncache");
