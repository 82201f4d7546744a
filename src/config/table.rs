//! Reading a TOML table key by key, with the line of every key and value.
//!
//! Not by `Deserialize`: serde stops at the first fault, and whoever writes the file wants to hear
//! of all of them at once.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Faults, refuse};

/// A value and the line it stands on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) line: usize,
}

/// Where the lines of a text begin.
pub(super) struct LineIndex {
    starts: Vec<usize>,
}

impl LineIndex {
    pub(super) fn new(text: &str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(offset, _)| offset + 1);
        Self {
            starts: std::iter::once(0).chain(after_newlines).collect(),
        }
    }

    /// The line, from 1, that the byte at `offset` is on.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }
}

/// One table of the file.
pub(super) struct Table<'a> {
    /// Key path up to here; empty for the whole file.
    path: &'static str,
    /// Line of the table's header.
    pub(super) line: usize,
    entries: &'a DeTable<'a>,
    lines: &'a LineIndex,
}

impl<'a> Table<'a> {
    /// The file itself as a table.
    pub(super) fn file(entries: &'a DeTable<'a>, lines: &'a LineIndex) -> Self {
        Self {
            path: "",
            line: 1,
            entries,
            lines,
        }
    }

    /// The value of `key` as `read` understands it; a fault if it is absent, with `example` as the
    /// line to add. `None` always comes with a fault.
    pub(super) fn required<T>(
        &self,
        key: &str,
        example: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, Fault>,
        faults: &mut Faults,
    ) -> Option<At<T>> {
        let missing = refuse("missing", format!("add a line such as {example}"));
        self.refuse_absent(key, &missing, faults);
        self.optional(key, read, faults)
    }

    /// The value of `key` as `read` understands it; `None` if it is absent or, with a fault, wrong.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, Fault>,
        faults: &mut Faults,
    ) -> Option<At<T>> {
        let (_, value) = self.find(key)?;
        let line = self.lines.line_of(value.span().start);
        match read(value.get_ref()) {
            Ok(value) => Some(At { value, line }),
            Err(fault) => {
                self.refuse(line, key, value.get_ref(), &fault, faults);
                None
            }
        }
    }

    /// The elements of the array under `key` as `read` understands them; none if it is absent. Those
    /// that are wrong are left out, each with a fault.
    pub(super) fn elements<T>(
        &self,
        key: &str,
        read: impl Fn(&DeValue<'_>) -> Result<T, Fault>,
        faults: &mut Faults,
    ) -> Vec<At<T>> {
        let Some((line, value)) = self.find(key) else {
            return Vec::new();
        };
        let DeValue::Array(elements) = value.get_ref() else {
            let fault = refuse("must be an array", format!("write {key} = [ ... ]"));
            self.refuse(line, key, value.get_ref(), &fault, faults);
            return Vec::new();
        };
        let mut read_elements = Vec::new();
        for element in elements.iter() {
            let line = self.lines.line_of(element.span().start);
            match read(element.get_ref()) {
                Ok(value) => read_elements.push(At { value, line }),
                Err(fault) => self.refuse(line, key, element.get_ref(), &fault, faults),
            }
        }
        read_elements
    }

    /// The table under `key`; `None` if it is absent or, with a fault, no table.
    pub(super) fn table(&self, key: &'static str, faults: &mut Faults) -> Option<Table<'a>> {
        let (line, value) = self.find(key)?;
        let DeValue::Table(entries) = value.get_ref() else {
            let fault = refuse("must be a table", format!("write [{key}]"));
            self.refuse(line, key, value.get_ref(), &fault, faults);
            return None;
        };
        Some(self.below(key, line, entries))
    }

    /// The array of tables under `key`, empty if it is absent or, with a fault, something else.
    pub(super) fn tables(&self, key: &'static str, faults: &mut Faults) -> Vec<Table<'a>> {
        let Some((line, value)) = self.find(key) else {
            return Vec::new();
        };
        let fault = refuse("must be an array of tables", format!("write [[{key}]]"));
        let DeValue::Array(elements) = value.get_ref() else {
            self.refuse(line, key, value.get_ref(), &fault, faults);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for element in elements.iter() {
            let line = self.lines.line_of(element.span().start);
            match element.get_ref() {
                DeValue::Table(entries) => tables.push(self.below(key, line, entries)),
                other => self.refuse(line, key, other, &fault, faults),
            }
        }
        tables
    }

    /// The elements of the array under `key` as `read` understands them, with the line of the key;
    /// `None` if it is absent or, with a fault, no array. A wrong element leaves a fault on its own
    /// line.
    pub(super) fn list<T>(
        &self,
        key: &str,
        example: &str,
        read: impl Fn(&DeValue<'_>) -> Result<T, Fault>,
        faults: &mut Faults,
    ) -> Option<At<Vec<T>>> {
        let (line, value) = self.find(key)?;
        let DeValue::Array(elements) = value.get_ref() else {
            let fault = refuse("must be an array", format!("write {example}"));
            self.refuse(line, key, value.get_ref(), &fault, faults);
            return None;
        };
        let mut list = Vec::new();
        for element in elements.iter() {
            match read(element.get_ref()) {
                Ok(value) => list.push(value),
                Err(fault) => {
                    let line = self.lines.line_of(element.span().start);
                    self.refuse(line, key, element.get_ref(), &fault, faults);
                }
            }
        }
        // With a fault noted, whether the rest is empty is no matter.
        (list.len() == elements.len()).then_some(At { value: list, line })
    }

    /// Whether `key` is there at all.
    pub(super) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// A fault for every key that is not among `valid`.
    pub(super) fn refuse_unknown(&self, valid: &[&str], faults: &mut Faults) {
        for (key, value) in self.entries {
            let name: &str = key.get_ref();
            if !valid.contains(&name) {
                let remedy = match nearest(name, valid) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("remove it; valid here: {}", valid.join(", ")),
                };
                let line = self.lines.line_of(key.span().start);
                let fault = refuse("unknown key", remedy);
                self.refuse(line, name, value.get_ref(), &fault, faults);
            }
        }
    }

    /// A fault if `key` is there at all.
    pub(super) fn refuse_present(&self, key: &str, fault: &Fault, faults: &mut Faults) {
        if let Some((line, _)) = self.find(key) {
            faults.key(line, &self.qualified(key), fault);
        }
    }

    /// A fault if `key` is not there at all.
    pub(super) fn refuse_absent(&self, key: &str, fault: &Fault, faults: &mut Faults) {
        if self.find(key).is_none() {
            faults.key(self.line, &self.qualified(key), fault);
        }
    }

    /// The line of `key` and its value.
    fn find(&self, key: &str) -> Option<(usize, &'a Spanned<DeValue<'a>>)> {
        let (spanned, value) = self
            .entries
            .iter()
            .find(|(name, _)| *name.get_ref() == key)?;
        Some((self.lines.line_of(spanned.span().start), value))
    }

    fn below(&self, path: &'static str, line: usize, entries: &'a DeTable<'a>) -> Table<'a> {
        Table {
            path,
            line,
            entries,
            lines: self.lines,
        }
    }

    fn qualified(&self, key: &str) -> String {
        // A key may hold any character between quotes; shown escaped, the message stays one line.
        let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let key = if !key.is_empty() && key.chars().all(bare) {
            key.to_owned()
        } else {
            format!("{key:?}")
        };
        if self.path.is_empty() {
            key
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn refuse(
        &self,
        line: usize,
        key: &str,
        value: &DeValue<'_>,
        fault: &Fault,
        faults: &mut Faults,
    ) {
        let key = self.qualified(key);
        match shown(value) {
            Some(value) => faults.value(line, &key, &value, fault),
            None => faults.key(line, &key, fault),
        }
    }
}

/// A scalar as the file has it; an array or a table is too long to show.
fn shown(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Datetime(datetime) => Some(datetime.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// The valid key that `key` is most likely a misspelling of.
fn nearest<'v>(key: &str, valid: &[&'v str]) -> Option<&'v str> {
    // Two slips, and a third of the word at most: "vin" may be "vni", "foo" is not "port".
    let tolerance = |near: &str| 2.min(near.chars().count().div_ceil(3));
    let key = key.to_lowercase();
    valid
        .iter()
        .map(|near| (strsim::osa_distance(&key, near), *near))
        .filter(|(distance, near)| *distance <= tolerance(near))
        .min()
        .map(|(_, near)| near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_on_the_line_that_its_newline_ends() {
        let lines = LineIndex::new("a\nbc\n\nd");
        let found: Vec<usize> = (0..7).map(|offset| lines.line_of(offset)).collect();
        assert_eq!(found, [1, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn nearest_finds_slips_and_no_strangers() {
        let valid = ["subnet", "network", "vni", "port", "mtu"];
        assert_eq!(nearest("subnets", &valid), Some("subnet"));
        assert_eq!(nearest("vin", &valid), Some("vni"));
        assert_eq!(nearest("MTU", &valid), Some("mtu"));
        assert_eq!(nearest("colour", &valid), None);
        assert_eq!(nearest("foo", &valid), None);
    }
}
