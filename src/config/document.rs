//! A file's text as a TOML document, and the faults of its syntax.

use std::path::Path;

use toml::de::{DeTable, Error as SyntaxError};

use super::fault::{ConfigErrors, Faults, refuse};
use super::table::{LineIndex, Table};

/// Parses `text` as TOML and lets `read` look at it, which leaves a fault wherever it returns none.
///
/// # Errors
/// Every fault found; only those of syntax if there are any.
pub(super) fn with_document<T>(
    path: &Path,
    text: &str,
    read: impl FnOnce(&Table<'_>, &mut Faults) -> Option<T>,
) -> Result<T, ConfigErrors> {
    let mut faults = Faults::new(path);
    let lines = LineIndex::new(text);
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    refuse_syntax(&syntax_errors, text, &lines, &mut faults);
    if !faults.is_empty() {
        return Err(faults.into_errors());
    }
    match read(&Table::file(document.get_ref(), &lines), &mut faults) {
        Some(value) if faults.is_empty() => Ok(value),
        _ => Err(faults.into_errors()),
    }
}

/// Notes the first syntax error of each line; the parser finds others where it took up again.
fn refuse_syntax(errors: &[SyntaxError], text: &str, lines: &LineIndex, faults: &mut Faults) {
    let mut last_line = 0;
    for error in errors {
        let line = lines.line_of(error.span().map_or(0, |span| span.start));
        if line == last_line {
            continue;
        }
        last_line = line;
        let source = text.lines().nth(line - 1).unwrap_or_default().trim();
        // The parser's words may be on several lines; ours never are.
        let words: Vec<&str> = error.message().split_whitespace().collect();
        let fault = refuse(
            format!("not valid TOML: {}", words.join(" ")),
            "correct this line",
        );
        faults.value(line, "syntax", source, &fault);
    }
}
