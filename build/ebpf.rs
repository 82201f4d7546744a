//! Builds a crate of eBPF programs from a build script, by the toolchain that `BPF_CARGO` and
//! `BPF_RUSTC` name and by `bpf-linker` on the PATH.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What the programs are built for.
const BPF_TARGET: &str = "bpfel-unknown-none";

/// Builds the eBPF crate at `directory` and returns the path of its object, `binary`.
pub fn build_programs(directory: &str, binary: &str) -> PathBuf {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = out.join("bpf");
    let cargo = env::var("BPF_CARGO").unwrap_or_else(|_| "/usr/bin/cargo".into());
    let rustc = env::var("BPF_RUSTC").unwrap_or_else(|_| "/usr/bin/rustc".into());
    // Without the last argument small copies become byte loops.
    let mut flags: Vec<String> = [
        "-Ctarget-cpu=v3",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "-Clink-arg=--disable-expand-memcpy-in-order",
    ]
    .map(str::to_owned)
    .into();
    flags.extend(nameless_paths(&rustc, &out));
    let mut command = Command::new(&cargo);
    command
        .current_dir(directory)
        .args(["build", "--release", "--locked", "--target", BPF_TARGET])
        .args((!brings_core(&rustc)).then_some("-Zbuild-std=core"))
        .arg("--target-dir")
        .arg(&target);
    // The outer cargo's settings are for another toolchain and target.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let keep = ["CARGO_HOME", "CARGO_NET_OFFLINE"].contains(&&*name)
            || name.starts_with("CARGO_HTTP_")
            || name.starts_with("CARGO_REGISTRIES_")
            || name.starts_with("CARGO_SOURCE_");
        let foreign = name.starts_with("CARGO")
            || name.starts_with("RUSTC")
            || name.starts_with("RUSTUP_TOOLCHAIN")
            || name == "RUSTFLAGS"
            || name == "RUSTDOCFLAGS";
        if foreign && !keep {
            command.env_remove(&*name);
        }
    }
    command
        .env("RUSTC", &rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!(
            "building the eBPF programs in {directory} failed: {status}; see the messages above, and docs/building.md for the toolchain"
        ),
        Err(error) => panic!(
            "cannot run {cargo}: {error}; install Debian's rustc-web, cargo-web and rust-web-src, or name another toolchain by BPF_CARGO and BPF_RUSTC, or a ready object by BPF_OBJECT"
        ),
    }
    target.join(BPF_TARGET).join("release").join(binary)
}

/// Flags that keep the build machine's paths out of BTF and debugging information: whoever builds the
/// same sources with the same toolchain gets the same object. Of two that match, the later counts.
fn nameless_paths(rustc: &str, out: &Path) -> Vec<String> {
    let here = env::current_dir().expect("cargo sets the working directory");
    let mut named = vec![(here, "/oncache"), (out.to_owned(), "/oncache/target")];
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    if let Some(cargo_home) = env::var_os("CARGO_HOME").map(PathBuf::from).or(home) {
        named.push((cargo_home, "/cargo"));
    }
    let asked = Command::new(rustc).args(["--print", "sysroot"]).output();
    if let Ok(answer) = asked {
        let sysroot = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
        named.push((sysroot.join("lib/rustlib/src/rust"), "/rust"));
    }
    let flag =
        |(path, name): (PathBuf, &str)| format!("--remap-path-prefix={}={name}", path.display());
    named.into_iter().map(flag).collect()
}

/// Whether a compiler has `core` for the programs' target, as that of nixpkgs has; others build it
/// from its sources.
fn brings_core(rustc: &str) -> bool {
    let mut asked = Command::new(rustc);
    asked.args(["--print", "target-libdir", "--target", BPF_TARGET]);
    asked.output().is_ok_and(|answer| {
        let path = String::from_utf8_lossy(&answer.stdout);
        fs::read_dir(path.trim()).is_ok_and(|files| {
            files
                .flatten()
                .any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
        })
    })
}
