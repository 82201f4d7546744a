//! The daemon and its containers: start, reload, upgrade, death, and whoever asks for the wrong thing.

#[path = "../builds/mod.rs"]
mod builds;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../namespaces/mod.rs"]
mod namespaces;
#[path = "../pinned_maps/mod.rs"]
mod pinned_maps;
#[path = "../reloading/mod.rs"]
mod reloading;
#[path = "../seed/mod.rs"]
#[allow(dead_code, reason = "no test takes everything")]
mod seed;
#[path = "../socket_request/mod.rs"]
mod socket_request;

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
mod reconcile;
mod reload;
mod taken_by_others;
mod tunnel_address;
mod upgrade;
