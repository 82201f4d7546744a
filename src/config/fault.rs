//! What is wrong with a configuration, and on which line.

use std::path::{Path, PathBuf};

use crate::shown::{PATH, VALUE, cut, cut_words};

/// One fault of a configuration file. Displayed as `FILE:LINE: key "value": why; what to do`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", place(.file, *.line))]
pub struct ConfigError {
    /// The file, by the path it was asked for.
    pub file: PathBuf,
    /// Line from 1; absent only if the file could not be read.
    pub line: Option<usize>,
    /// Which key and value, why refused, what to do: one line.
    pub message: String,
}

/// Every fault found in one pass, in the order of the lines. Never empty; displayed one a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", one_a_line(.0))]
pub struct ConfigErrors(pub Vec<ConfigError>);

fn place(file: &Path, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{}:{line}", cut(&file.to_string_lossy(), PATH)),
        None => cut(&file.to_string_lossy(), PATH),
    }
}

fn one_a_line(errors: &[ConfigError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Why a value is refused, and what to do about it.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) why: String,
    pub(super) remedy: String,
}

/// A [`Fault`] of the given reason and remedy.
pub(super) fn refuse(why: impl Into<String>, remedy: impl Into<String>) -> Fault {
    Fault {
        why: why.into(),
        remedy: remedy.into(),
    }
}

/// Collects the faults of one file.
pub(super) struct Faults {
    file: PathBuf,
    found: Vec<ConfigError>,
}

impl Faults {
    pub(super) fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            found: Vec::new(),
        }
    }

    /// Notes that `value` of `key` is refused. The value is quoted, cut and escaped, so that the
    /// message stays one line of a sensible length whatever the file holds.
    pub(super) fn value(&mut self, line: usize, key: &str, value: &str, fault: &Fault) {
        let (key, value) = (cut(key, VALUE), cut(value, VALUE));
        self.push(Some(line), &format!("{key} {value:?}: "), fault);
    }

    /// Notes a fault of `key` that no single value can be blamed for.
    pub(super) fn key(&mut self, line: usize, key: &str, fault: &Fault) {
        self.push(Some(line), &format!("{}: ", cut(key, VALUE)), fault);
    }

    /// Notes a fault of the file as a whole.
    pub(super) fn file(&mut self, fault: &Fault) {
        self.push(None, "", fault);
    }

    /// What `result` holds, or nothing and its faults among these.
    pub(super) fn of<T>(&mut self, result: Result<T, ConfigErrors>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(ConfigErrors(errors)) => {
                self.found.extend(errors);
                None
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Everything noted, in the order of the lines.
    pub(super) fn into_errors(mut self) -> ConfigErrors {
        self.found.sort_by_key(|error| error.line);
        ConfigErrors(self.found)
    }

    fn push(&mut self, line: Option<usize>, subject: &str, fault: &Fault) {
        // They may quote in turn.
        let (why, remedy) = (
            cut_words(&fault.why, VALUE),
            cut_words(&fault.remedy, VALUE),
        );
        let (why, remedy) = (cut(&why, PATH * 2), cut(&remedy, PATH * 2));
        self.found.push(ConfigError {
            file: self.file.clone(),
            line,
            message: format!("{subject}{why}; {remedy}"),
        });
    }
}
