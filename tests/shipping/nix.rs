//! The files below `nixos/` that other distributions take are what the NixOS module is made of.
//! `ONCACHE_WRITE_REFERENCE=1` rewrites them.
//!
//! Needs Debian's `nix-bin` (`nix-instantiate`, which evaluates these without a store or a network) and
//! `systemd-analyze`.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The worst that `systemd-analyze security` may say, from 0 to 10.
const EXPOSURE: f32 = 3.5;

fn nixos() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("nixos")
}

/// Runs a program and returns its standard output.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make setup` installs it"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Evaluates an expression file below `nixos/` to JSON.
fn evaluate(file: &str) -> String {
    let path = nixos().join(file);
    let path = path.to_str().expect("a path of ours");
    run("nix-instantiate", &["--eval", "--strict", "--json", path])
}

/// Every file below a directory, by its path from there.
fn files_below(directory: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(directory).expect("below it");
                let text = fs::read_to_string(&path).expect("a text");
                found.insert(name.to_str().expect("a name of ours").to_owned(), text);
            }
        }
    }
    found
}

#[test]
fn the_files_for_other_distributions_are_current() {
    let wanted: BTreeMap<String, String> =
        serde_json::from_str(&evaluate("reference.nix")).expect("texts by path");
    let directory = nixos().join("reference");
    if env::var_os("ONCACHE_WRITE_REFERENCE").is_some() {
        if directory.exists() {
            fs::remove_dir_all(&directory).expect("it can be removed");
        }
        for (name, text) in &wanted {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("it can be made");
            fs::write(path, text).expect("it can be written");
        }
    }
    let present = files_below(&directory);
    println!("{:#?}", present.keys().collect::<Vec<_>>());
    assert_eq!(
        present, wanted,
        "run: ONCACHE_WRITE_REFERENCE=1 cargo test --test shipping nix::"
    );
}

#[test]
fn every_expression_parses() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = files_below(&nixos());
    let mut parsed = vec![top.join("flake.nix")];
    parsed.extend(
        files
            .keys()
            .filter(|name| name.ends_with(".nix"))
            .map(|name| nixos().join(name)),
    );
    for path in &parsed {
        run(
            "nix-instantiate",
            &["--parse", path.to_str().expect("a path of ours")],
        );
    }
    println!("{} files", parsed.len());
    assert!(parsed.len() > 5, "{parsed:?}");
}

/// The flags for the programs stand in two places, since neither can read the other.
#[test]
fn the_programs_are_built_with_the_same_flags_everywhere() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let flags = |path: &Path| -> Vec<String> {
        let text = fs::read_to_string(path).expect("a text");
        let lines = text.lines().map(|line| line.trim().trim_end_matches(','));
        lines
            .filter(|line| line.starts_with("\"-C"))
            .map(str::to_owned)
            .collect()
    };
    let [cargo, nix] =
        [top.join("build/ebpf.rs"), nixos().join("ebpf.nix")].map(|path| flags(&path));
    println!("{cargo:?}");
    assert_eq!(cargo, nix);
    assert_eq!(cargo.len(), 4);
}

#[test]
fn the_scenarios_configurations_are_accepted() {
    for (name, text) in files_below(&nixos().join("reference/hosts")) {
        let path = nixos().join("reference/hosts").join(&name);
        let path = path.to_str().expect("a path of ours");
        let arguments = ["check", "--syntax-only", "--config", path];
        let said = run(env!("CARGO_BIN_EXE_oncache"), &arguments);
        println!("{}\n{text}", said.trim());
    }
}

/// A unit of `nixos/reference/systemd/system`.
fn unit(name: &str) -> String {
    let path = nixos().join("reference/systemd/system").join(name);
    path.to_str().expect("a path of ours").to_owned()
}

#[test]
fn the_daemons_unit_is_confined() {
    let report = run(
        "systemd-analyze",
        &[
            "security",
            "--no-pager",
            "--offline=true",
            &unit("oncache.service"),
        ],
    );
    let verdict = report
        .lines()
        .find(|line| line.contains("Overall exposure level"))
        .unwrap_or_else(|| panic!("no verdict in\n{report}"));
    println!("{}", verdict.trim());
    let exposure = verdict
        .split_whitespace()
        .find_map(|word| word.parse::<f32>().ok())
        .expect("a number");
    assert!(exposure <= EXPOSURE, "{report}");
}

#[test]
fn systemd_knows_every_word_of_the_units() {
    // The installed systemd may be older than Type=notify-reload (253), so the unit for it is read.
    let directory = tempfile::tempdir().expect("a directory");
    let mut paths = Vec::new();
    for (from, name) in [
        ("systemd-252", "oncache.service"),
        ("systemd", "oncache-down.service"),
        ("systemd", "oncache-container-web.service"),
    ] {
        let path = nixos()
            .join("reference")
            .join(from)
            .join("system")
            .join(name);
        let text = fs::read_to_string(path).expect("a unit");
        // It complains of programs and manual pages that are not installed.
        let text = text
            .replace("/usr/local/sbin/oncache", "/bin/true")
            .replace("Documentation=man:oncache(8)\n", "");
        let path = directory.path().join(name);
        fs::write(&path, text).expect("a copy");
        paths.push(path.to_str().expect("a path").to_owned());
    }
    let mut arguments = vec!["verify", "--recursive-errors=no"];
    arguments.extend(paths.iter().map(String::as_str));
    let output = Command::new("systemd-analyze")
        .args(&arguments)
        .output()
        .expect("systemd-analyze");
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{said}");
    // Unknown words are warnings to it.
    for complaint in ["Unknown", "Failed to parse", "Invalid", "ignoring"] {
        assert!(!said.contains(complaint), "{said}");
    }
}
