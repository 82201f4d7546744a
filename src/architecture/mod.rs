//! docs/architecture.md held against the sources: arrows point down, and every folder is named.
//!
//! Which module uses which is read from the text of src/: every path that begins with `crate`, `super` or
//! `self`, in `use` trees and inline, in tests and macros too.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod paths;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use self::paths::{Module, uses};

/// The floors, the highest first: an arrow goes from one to a lower one, neither up nor along. What the
/// layout has a place for but no code yet has its floor already.
const FLOORS: &[&[&str]] = &[
    &["cli"],
    &["daemon"],
    &["control"],
    &[
        "network", "policy", "cni", "docker", "netavark", "doctor", "metrics",
    ],
    // Above what it returns, a change to commit, and what it looks at, a container's addresses.
    &["slow_path"],
    &["container", "peers", "coherence", "probe"],
    &["datapath", "netlink", "nft", "state", "log"],
    &["config"],
    // Of use to anybody, and they know nobody.
    &["allocator", "shown", "stable_hash"],
];

/// Arrows that do not point down: from this file, to that module, and why for now. The list only gets
/// shorter: what is not needed any more is a failure too.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// Files that import each other, and why for now; as [`EXCEPTIONS`].
const CIRCLES: &[(&[&str], &str)] = &[];

/// The crates whose files do not import each other, by where their sources are.
const CRATES: [&str; 2] = ["src", "benches/src"];

fn folder(of_crate: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of_crate)
}

/// All files of a crate by the module that each is, without its root and these tests.
fn sources(of_crate: &str) -> BTreeMap<Module, PathBuf> {
    let root = folder(of_crate);
    let mut sources = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let below = path.strip_prefix(&root).unwrap().to_owned();
            let Some(stem) = below.to_str().unwrap().strip_suffix(".rs") else {
                continue;
            };
            let stem = stem.strip_suffix("/mod").unwrap_or(stem);
            if !["lib", "main"].contains(&stem) && !stem.starts_with("architecture") {
                sources.insert(stem.split('/').map(str::to_owned).collect(), below);
            }
        }
    }
    sources
}

fn uses_of(of_crate: &str, module: &[String], file: &Path) -> Vec<Module> {
    let path = folder(of_crate).join(file);
    uses(module, &fs::read_to_string(path).unwrap())
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The arrows of one file that do not point down: to which module, and what is wrong with that.
fn wrong_arrows(
    module: &[String],
    uses: &[Module],
    modules: &BTreeSet<&str>,
) -> BTreeMap<String, String> {
    let mut wrong = BTreeMap::new();
    for target in uses {
        let Some(target) = target.first() else {
            wrong.insert("crate".to_owned(), "takes all of the root".to_owned());
            continue;
        };
        if *target == module[0] || !modules.contains(target.as_str()) {
            continue;
        }
        let words = match (floor(&module[0]), floor(target)) {
            (Some(here), Some(there)) if here < there => continue,
            (Some(here), Some(there)) if here == there => "is on the same floor",
            (Some(_), Some(_)) => "is above",
            _ => "has no floor, or this has none",
        };
        wrong.insert(target.clone(), words.to_owned());
    }
    wrong
}

#[test]
fn arrows_point_down() {
    let sources = sources("src");
    let modules: BTreeSet<&str> = sources.keys().map(|module| module[0].as_str()).collect();
    let mut failures = Vec::new();
    for module in &modules {
        if floor(module).is_none() {
            failures.push(format!("src/{module} has no floor: give it one in FLOORS"));
        }
    }
    let mut needed = BTreeSet::new();
    for (module, file) in &sources {
        for (target, words) in wrong_arrows(module, &uses_of("src", module, file), &modules) {
            let file = file.to_str().unwrap();
            let excepted = EXCEPTIONS
                .iter()
                .position(|it| (it.0, it.1) == (file, &*target));
            match excepted {
                Some(place) => drop(needed.insert(place)),
                None => failures.push(format!("src/{file} uses {target}, which {words}")),
            }
        }
    }
    for (place, (file, target, _)) in EXCEPTIONS.iter().enumerate() {
        if !needed.contains(&place) {
            failures.push(format!(
                "src/{file} does not use {target} any more: remove that from EXCEPTIONS"
            ));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// What each file imports of others, but for what stands in the folder's own `mod.rs` or in one above:
/// a module's parts are its parts.
fn imports<'s>(
    of_crate: &str,
    sources: &'s BTreeMap<Module, PathBuf>,
) -> BTreeMap<&'s Module, BTreeSet<&'s Module>> {
    let file_of = |target: &[String]| {
        let parts = (1..=target.len()).rev();
        let mut found = parts.filter_map(|length| sources.get_key_value(&target[..length]));
        found.next().map(|(module, _)| module)
    };
    let mut imports = BTreeMap::new();
    for (module, file) in sources {
        let uses = uses_of(of_crate, module, file);
        let others = uses.iter().filter_map(|target| file_of(target));
        let others =
            others.filter(|other| !module.starts_with(other) && !other.starts_with(module));
        imports.insert(module, others.collect());
    }
    imports
}

/// The files of a crate that import each other, by way of others too.
fn circles(of_crate: &str) -> BTreeSet<Vec<String>> {
    let sources = sources(of_crate);
    assert!(!sources.is_empty(), "{of_crate}");
    let imports = imports(of_crate, &sources);
    // What can be reached from each file by its imports.
    let reached = |from: &Module| {
        let mut reached = BTreeSet::new();
        let mut next = vec![from];
        while let Some(module) = next.pop() {
            for other in imports.get(module).into_iter().flatten() {
                if reached.insert(*other) {
                    next.push(other);
                }
            }
        }
        reached
    };
    let reached: BTreeMap<&Module, _> = imports.keys().map(|it| (*it, reached(it))).collect();
    let in_circles = reached
        .iter()
        .filter(|(module, others)| others.contains(*module));
    let circle = in_circles.map(|(module, others)| {
        let circle = others.iter().filter(|it| reached[**it].contains(module));
        let files = circle.map(|it| format!("{of_crate}/{}", sources[*it].display()));
        files.collect()
    });
    circle.collect()
}

#[test]
fn files_do_not_import_each_other() {
    let circles: BTreeSet<Vec<String>> = CRATES.iter().flat_map(|it| circles(it)).collect();
    let owned = |files: &[&str]| files.iter().map(|it| (*it).to_owned()).collect();
    let excepted = CIRCLES.iter().map(|(files, _)| owned(files)).collect();
    let new: Vec<_> = circles.difference(&excepted).collect();
    assert!(new.is_empty(), "these import each other: {new:#?}");
    let gone: Vec<_> = excepted.difference(&circles).collect();
    assert!(
        gone.is_empty(),
        "no circles any more, remove them from CIRCLES: {gone:#?}"
    );
}

#[test]
fn every_folder_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let folders = fs::read_dir(root.join("src")).unwrap();
    let folders = folders.map(|entry| entry.unwrap().path());
    let folders: Vec<PathBuf> = folders.filter(|path| path.is_dir()).collect();
    assert!(folders.len() > 5, "{folders:?}");
    for folder in folders {
        let name = folder.file_name().unwrap().to_str().unwrap();
        if name == "architecture" {
            continue;
        }
        assert!(
            text.contains(&format!("`{name}/`")),
            "docs/architecture.md does not say what src/{name}/ is"
        );
    }
}

#[test]
fn an_arrow_up_is_found() {
    let modules = ["cli", "config", "datapath", "netlink", "shown"].into();
    let wrong = |text: &str| {
        let module = ["netlink".to_owned(), "links".to_owned()];
        let wrong = wrong_arrows(&module, &uses(&module, text), &modules);
        wrong.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(wrong("use crate::{config::Peer, shown::cut};"), [""; 0]);
    assert_eq!(wrong("use super::{Mac, errors::NetlinkError};"), [""; 0]);
    assert_eq!(wrong("use crate::{shown, cli::table};"), ["cli"]);
    assert_eq!(wrong("fn print() { super::super::cli::print(); }"), ["cli"]);
    assert_eq!(wrong("use crate::datapath::clock;"), ["datapath"]);
}
