//! The daemon and its containers: start, reload, upgrade, death, and whoever asks for the wrong thing.

#[path = "../overlay_hosts/mod.rs"] // It calls the library, which the test bed does not.
mod overlay_hosts;

mod address_reuse;
mod addresses_of_nobody;
mod bad_config;
mod bad_host;
mod bad_input;
mod container_life;
mod container_route;
mod control_socket;
mod daemon_death;
mod down;
mod living_containers;
mod long_input;
mod moved_address;
mod overlay_reconcile;
mod pinned_maps;
mod reconcile;
mod reload;
mod taken_by_others;
mod tunnel_address;
mod upgrade;

/// The binary under test.
const ONCACHE: &str = env!("CARGO_BIN_EXE_oncache");
