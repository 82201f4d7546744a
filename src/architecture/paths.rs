//! The paths in a source's text that begin with `crate`, `super` or `self`.

use std::collections::BTreeSet;

/// A module's place below the crate's root.
pub(super) type Module = Vec<String>;

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
pub(super) fn uses(module: &[String], text: &str) -> Vec<Module> {
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
