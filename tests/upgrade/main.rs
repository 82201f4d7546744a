//! One daemon follows another: of another build, after a crash, over what a crash has left.

#[path = "../builds/mod.rs"]
mod builds;
#[path = "../lab/mod.rs"]
mod lab;

#[path = "../seed/mod.rs"]
#[allow(dead_code, reason = "no test takes everything")]
mod seed;

mod adoption;
mod garbage;
mod killed_starts;
mod left;
mod state_file;
