//! How much of somebody else's text a message repeats.
//!
//! A message is one line that an operator reads at night. What it quotes may be a line of five
//! thousand characters, so all that is not oncache's own words goes through here.

/// The most characters of a value that a message quotes.
pub const VALUE: usize = 80;
/// The most characters of a path. Longer than all but the oddest.
pub const PATH: usize = 200;
/// The most characters of a message whose parts cannot be told apart any more.
pub const LINE: usize = 1000;

/// `text`, or its first `most` characters and a mark that says how many there are.
#[must_use]
pub fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => {
            let all = text.chars().count();
            let head = text.get(..end).unwrap_or_default();
            format!("{head}... ({all} characters)")
        }
    }
}

/// `text` with each word of more than `most` characters cut.
#[must_use]
pub fn cut_words(text: &str, most: usize) -> String {
    let words = text.split_inclusive(char::is_whitespace);
    words
        .map(|word| {
            let end = word.trim_end().len();
            let (word, space) = word.split_at(end);
            cut(word, most) + space
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_stays() {
        for text in ["", "web", &"x".repeat(80), &"ä".repeat(80)] {
            assert_eq!(cut(text, 80), text);
            assert_eq!(cut_words(text, 80), text);
        }
    }

    #[test]
    fn what_is_long_is_cut_between_characters_and_counted() {
        assert_eq!(cut("abcdef", 3), "abc... (6 characters)");
        assert_eq!(cut("äöüßé", 2), "äö... (5 characters)");
        assert_eq!(
            cut_words("a word\nand abcdef b", 4),
            "a word\nand abcd... (6 characters) b"
        );
    }
}
