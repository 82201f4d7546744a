//! nft's complaints, fit for people.

/// nft's words as part of a message: without carets, and without the places in an input that nobody
/// has (`internal:0:0-0`, `/dev/stdin:7:1-4`).
pub(super) fn one_line(stderr: &str) -> String {
    let mut lines: Vec<&str> = stderr
        .lines()
        .map(|line| without_place(line.trim()))
        .filter(|line| line.chars().any(|c| !matches!(c, '^' | '~' | ' ')))
        .collect();
    // The kernel's verdict comes for every command of a transaction that fails as a whole.
    lines.dedup();
    match lines.is_empty() {
        true => "nft does not say why".to_owned(),
        false => lines.join("; "),
    }
}

/// What follows `FILE:LINE:COLUMN-COLUMN: ` and the word `Error` (nftables, src/erec.c, `erec_print`).
fn without_place(line: &str) -> &str {
    let is_place = |place: &str| {
        let mut parts = place.rsplit(':');
        let numbers = |part: Option<&str>| {
            part.is_some_and(|part| {
                !part.is_empty() && part.chars().all(|c| c.is_ascii_digit() || c == '-')
            })
        };
        numbers(parts.next()) && numbers(parts.next())
    };
    let said = match line.split_once(": ") {
        Some((place, said)) if is_place(place) => said,
        _ => line,
    };
    said.strip_prefix("Error: ").unwrap_or(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nfts_words_become_one_line_without_the_place_in_its_input() {
        for (stderr, said) in [
            (
                "internal:0:0-0: Error: Could not process rule: No such file or directory\n\n\n",
                "Could not process rule: No such file or directory",
            ),
            (
                "internal:0:0-0: Error: Invalid set flag.\n\ninternal:0:0-0: Error: Parsing command array at index 1 failed.\n",
                "Invalid set flag.; Parsing command array at index 1 failed.",
            ),
            (
                "/dev/stdin:2:33-33: Error: syntax error, unexpected '}'\nchain f { }\n ^\n",
                "syntax error, unexpected '}'; chain f { }",
            ),
            (
                "internal:0:0-0: Error: Could not process rule: Protocol error\n\n\ninternal:0:0-0: Error: Could not process rule: Protocol error\n\n\n",
                "Could not process rule: Protocol error",
            ),
            ("Error: no\nlist table x\n     ^^^^~~\n", "no; list table x"),
            ("Warning: 10:20 is late: no", "Warning: 10:20 is late: no"),
            ("\n", "nft does not say why"),
        ] {
            assert_eq!(one_line(stderr), said);
            assert!(!one_line(stderr).contains("internal:"));
        }
    }
}
