//! One daemon follows another: of another build, after a crash, over what a crash has left.

mod adoption;
mod garbage;
mod killed_starts;
mod left;
mod state_file;
