//! Builds the programs of the `floor` column and embeds them.

#[path = "../build/ebpf.rs"]
mod ebpf;

use std::{env, fs, path::PathBuf};

fn main() {
    for variable in ["BPF_CARGO", "BPF_RUSTC"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for watched in ["build.rs", "../build/ebpf.rs", "floor"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = ebpf::build_programs("floor", "floor");
    fs::copy(&object, out.join("floor.bpf.o")).expect("copy the object");
}
