//! Builds the eBPF programs and hands the object to the binary; names the ABI.
//!
//! `BPF_OBJECT=path` embeds a ready object instead. Otherwise `bpf/` is built by a Rust toolchain that
//! has `core` for the target (nixpkgs) or its sources (Debian: rustc-web, cargo-web, rust-web-src), which
//! `BPF_CARGO` and `BPF_RUSTC` name, and by `bpf-linker` on the PATH.

#[path = "build/ebpf.rs"]
mod ebpf;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// What the programs and the daemon must agree on: a change of any of these names a new pin
/// directory, so maps of another layout are never taken over.
const ABI_SOURCES: [&str; 2] = ["bpf/abi/src", "bpf/src/maps.rs"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build/ebpf.rs");
    for variable in ["BPF_OBJECT", "BPF_CARGO", "BPF_RUSTC"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for watched in ["bpf/src", "bpf/abi", "bpf/Cargo.toml", "bpf/Cargo.lock"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    println!("cargo:rustc-env=ONCACHE_ABI={:016x}", abi_hash());

    let embedded =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("oncache.bpf.o");
    let object = match env::var_os("BPF_OBJECT") {
        Some(ready) => PathBuf::from(ready),
        None => ebpf::build_programs("bpf", "oncache"),
    };
    println!("cargo:rerun-if-changed={}", object.display());
    if let Err(error) = fs::copy(&object, &embedded) {
        panic!("cannot read the eBPF object {}: {error}", object.display());
    }
}

/// FNV-1a over the ABI's sources, file by file in the order of their names.
fn abi_hash() -> u64 {
    let mut files = Vec::new();
    for source in ABI_SOURCES {
        collect(Path::new(source), &mut files);
    }
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let bytes = fs::read(&file)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
        for byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        let entries = fs::read_dir(path)
            .unwrap_or_else(|error| panic!("cannot list {}: {error}", path.display()));
        for entry in entries {
            let entry =
                entry.unwrap_or_else(|error| panic!("cannot list {}: {error}", path.display()));
            collect(&entry.path(), files);
        }
    } else {
        files.push(path.to_owned());
    }
}
