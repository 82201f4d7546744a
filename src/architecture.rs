//! docs/architecture.md held against the sources: arrows point down, and every folder is named.
//!
//! Which module uses which is read from the text of src/: every path that begins with `crate`, `super` or
//! `self`, in `use` trees and inline, in tests and macros too.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The floors, the highest first: an arrow goes from one to a lower one, neither up nor along. What the
/// layout has a place for but no code yet has its floor already.
const FLOORS: &[&[&str]] = &[
    &["cli"],
    &["daemon"],
    &["control"],
    &[
        "network", "policy", "cni", "docker", "netavark", "doctor", "metrics",
    ],
    &[
        "container",
        "slow_path",
        "overlay",
        "peers",
        "coherence",
        "probe",
    ],
    &["datapath", "netlink", "nft", "state", "log"],
    &["config"],
    // Of use to anybody, and they know nobody.
    &["allocator", "shown", "stable_hash"],
];

/// Arrows that do not point down: from this file, to that module, and why for now. The list only gets
/// shorter: what is not needed any more is a failure too.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// Files that import each other, and why for now; as [`EXCEPTIONS`].
const CIRCLES: &[(&[&str], &str)] = &[
    (
        &[
            "overlay/nftables.rs",
            "overlay/refused.rs",
            "overlay/ruleset.rs",
            "overlay/source_guard.rs",
            "overlay/tunnel_guard.rs",
        ],
        "how rules are written and what they say are not apart yet: nft is to be spoken in one place",
    ),
    (
        &["policy/compile.rs", "policy/opener.rs"],
        "how rules are written is in the one, and the other writes some: as above",
    ),
];

/// A module's place below the crate's root.
type Module = Vec<String>;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// `::`
    Separator,
    Sign(char),
}

/// The text as tokens, without what is no code: comments, strings and characters. Lifetimes are words.
fn tokens(text: &str) -> Vec<Token> {
    let text: Vec<char> = text.chars().collect();
    let at = |index: usize| text.get(index).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut here = 0;
    while here < text.len() {
        let begun = here;
        match (at(here), at(here + 1)) {
            ('/', '/') => {
                while here < text.len() && at(here) != '\n' {
                    here += 1;
                }
            }
            ('/', '*') => {
                here += 2;
                while here < text.len() && (at(here), at(here + 1)) != ('*', '/') {
                    here += 1;
                }
                here += 2;
            }
            ('"', _) => {
                here += 1;
                while here < text.len() && at(here) != '"' {
                    here += if at(here) == '\\' { 2 } else { 1 };
                }
                here += 1;
            }
            // A raw string, and no raw identifier.
            ('r', '"' | '#') if at(here + 1) == '"' || "#\"".contains(at(here + 2)) => {
                here += 1;
                while at(here) == '#' {
                    here += 1;
                }
                let hashes = here - begun - 1;
                here += 1;
                let ends = |from: usize| {
                    at(from) == '"' && (1..=hashes).all(|after| at(from + after) == '#')
                };
                while here < text.len() && !ends(here) {
                    here += 1;
                }
                here += 1 + hashes;
            }
            ('\'', '\\') => {
                here += 3;
                while here < text.len() && at(here) != '\'' {
                    here += 1;
                }
                here += 1;
            }
            ('\'', _) if at(here + 2) == '\'' => here += 3,
            (':', ':') => {
                tokens.push(Token::Separator);
                here += 2;
            }
            (c, _) if is_word(c) => {
                while is_word(at(here)) {
                    here += 1;
                }
                tokens.push(Token::Word(text[begun..here].iter().collect()));
            }
            (c, _) => {
                if !c.is_whitespace() {
                    tokens.push(Token::Sign(c));
                }
                here += 1;
            }
        }
    }
    tokens
}

/// What the text of `module` uses of its own crate, by the paths from the root.
fn uses(module: &[String], text: &str) -> Vec<Module> {
    let tokens = tokens(text);
    let word = |index: usize| match tokens.get(index) {
        Some(Token::Word(word)) => Some(word.as_str()),
        _ => None,
    };
    let is = |index: usize, token: &Token| tokens.get(index) == Some(token);
    let mut found = Vec::new();
    let mut inside = module.to_vec();
    // How deep in braces the modules begin that are written out in this file.
    let (mut depth, mut begun) = (0, Vec::new());
    let mut after = 0;
    for (index, token) in tokens.iter().enumerate() {
        // Within a tree a path begins behind another.
        if index < after {
            continue;
        }
        match token {
            Token::Sign('{') => {
                depth += 1;
                if index > 1
                    && word(index - 2) == Some("mod")
                    && let Some(name) = word(index - 1)
                {
                    inside.push(name.to_owned());
                    begun.push(depth);
                }
            }
            Token::Sign('}') => {
                if begun.last() == Some(&depth) {
                    begun.pop();
                    inside.pop();
                }
                depth -= 1;
            }
            Token::Word(first)
                if ["crate", "super", "self"].contains(&first.as_str())
                    && is(index + 1, &Token::Separator)
                    && (index == 0 || !is(index - 1, &Token::Separator)) =>
            {
                let mut paths = Vec::new();
                after = expand(&tokens, index, &[], &mut paths);
                found.extend(paths.iter().map(|path| resolve(&inside, path)));
            }
            _ => {}
        }
    }
    found
}

/// The paths of the tree that begins at `index`, each behind `before`. Returns where the tree has ended.
fn expand(tokens: &[Token], mut index: usize, before: &[String], paths: &mut Vec<Module>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(index) {
            Some(Token::Word(word)) => {
                path.push(word.clone());
                index += 1;
                if tokens.get(index) != Some(&Token::Separator) {
                    break;
                }
                index += 1;
            }
            Some(Token::Sign('{')) => {
                index += 1;
                while let Some(token) = tokens.get(index)
                    && *token != Token::Sign('}')
                {
                    index = if *token == Token::Sign(',') {
                        index + 1
                    } else {
                        expand(tokens, index, &path, paths)
                    };
                }
                return index + 1;
            }
            // All of a module, or the arguments of a generic one.
            _ => {
                index += 1;
                break;
            }
        }
    }
    paths.push(path);
    // `as` and another name.
    if tokens.get(index) == Some(&Token::Word("as".to_owned())) {
        index += 2;
    }
    index
}

/// A path as it is written in `module`, from the root.
fn resolve(module: &[String], path: &[String]) -> Module {
    let mut from_root = module.to_vec();
    for (place, word) in path.iter().enumerate() {
        match word.as_str() {
            "crate" if place == 0 => from_root.clear(),
            "self" => {}
            "super" => drop(from_root.pop()),
            _ => from_root.push(word.clone()),
        }
    }
    from_root
}

/// All files of src/ by the module that each is, without the root and these tests.
fn sources() -> BTreeMap<Module, PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
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
            if !["lib", "main", "architecture"].contains(&stem) {
                sources.insert(stem.split('/').map(str::to_owned).collect(), below);
            }
        }
    }
    sources
}

fn uses_of(module: &[String], file: &Path) -> Vec<Module> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    uses(module, &fs::read_to_string(root.join(file)).unwrap())
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
    let sources = sources();
    let modules: BTreeSet<&str> = sources.keys().map(|module| module[0].as_str()).collect();
    let mut failures = Vec::new();
    for module in &modules {
        if floor(module).is_none() {
            failures.push(format!("src/{module} has no floor: give it one in FLOORS"));
        }
    }
    let mut needed = BTreeSet::new();
    for (module, file) in &sources {
        for (target, words) in wrong_arrows(module, &uses_of(module, file), &modules) {
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
fn imports(sources: &BTreeMap<Module, PathBuf>) -> BTreeMap<&Module, BTreeSet<&Module>> {
    let file_of = |target: &[String]| {
        let parts = (1..=target.len()).rev();
        let mut found = parts.filter_map(|length| sources.get_key_value(&target[..length]));
        found.next().map(|(module, _)| module)
    };
    let mut imports = BTreeMap::new();
    for (module, file) in sources {
        let uses = uses_of(module, file);
        let others = uses.iter().filter_map(|target| file_of(target));
        let others =
            others.filter(|other| !module.starts_with(other) && !other.starts_with(module));
        imports.insert(module, others.collect());
    }
    imports
}

#[test]
fn files_do_not_import_each_other() {
    let sources = sources();
    let imports = imports(&sources);
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
    let mut circles = BTreeSet::new();
    for (module, others) in &reached {
        if others.contains(module) {
            let circle = others
                .iter()
                .filter(|other| reached[**other].contains(module));
            let files: Vec<&str> = circle.map(|it| sources[*it].to_str().unwrap()).collect();
            circles.insert(files);
        }
    }
    let excepted: BTreeSet<Vec<&str>> = CIRCLES.iter().map(|(files, _)| files.to_vec()).collect();
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
        assert!(
            text.contains(&format!("`{name}/`")),
            "docs/architecture.md does not say what src/{name}/ is"
        );
    }
}

#[test]
fn paths_are_found_wherever_they_are_written() {
    let module = ["overlay".to_owned(), "wanted".to_owned()];
    let text = r####"
        use std::{collections::HashMap, net::Ipv4Addr};
        pub(super) use super::names::{self, Device as Named};
        use crate::{config::{Peer, rule::*}, netlink::Mac, state};
        // use crate::comment;
        /* use crate::comment; */
        const TEXT: &str = "crate::string \" crate::string";
        const RAW: &str = r#"crate::raw " crate::raw"#;
        const LETTER: char = '"';
        fn inline<'a>(it: &'a crate::shown::Text) { super::super::log::note::<'a>(format!("{}", crate::shown::cut(it))); }
        mod tests {
            use super::{super::diff, *};
            fn one() { { self::two() } }
        }
        use self::below::Thing;
    "####;
    let found: BTreeSet<String> = uses(&module, text)
        .iter()
        .map(|path| path.join("::"))
        .collect();
    let expected = [
        "config::Peer",
        "config::rule",
        "log::note",
        "netlink::Mac",
        "overlay::diff",
        "overlay::names",
        "overlay::names::Device",
        "overlay::wanted",
        "overlay::wanted::below::Thing",
        "overlay::wanted::tests::two",
        "shown::Text",
        "shown::cut",
        "state",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
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
