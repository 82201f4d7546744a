//! What is shipped beside the binary: man page, units, NixOS module.

#[path = "../lab/mod.rs"]
mod lab;

mod man_page;
mod nix;
mod nixos_firewall;
mod service_manager;
