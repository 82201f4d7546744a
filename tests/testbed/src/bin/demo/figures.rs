//! Numbers as text.

/// What was measured, run by run.
#[derive(Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// Adds a run.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The lowest, the median (of an odd number of runs) and the highest.
    pub fn spread(&self) -> [f64; 3] {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        [
            sorted[0],
            sorted[sorted.len() / 2],
            sorted[sorted.len() - 1],
        ]
    }
}

/// A table whose first `left` columns are aligned to the left and the others to the right.
pub fn table<const N: usize>(rows: &[[String; N]], left: usize) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            line.push_str("  ");
            line.push_str(&if column < left {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// 1234567 as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_has_its_lowest_median_and_highest() {
        let mut series = Series::default();
        for value in [3.0, 9.0, 1.0, 2.0, 8.0] {
            series.push(value);
        }
        assert!(series.spread().map(f64::to_bits) == [1.0, 3.0, 9.0].map(f64::to_bits));
    }

    #[test]
    fn columns_line_up() {
        let rows = [["what", "unit", "n"], ["a", "s", "1000"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows, 2), "  what  unit     n\n  a     s     1000\n");
    }

    #[test]
    fn digits_are_grouped() {
        let text = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(text, ["0", "999", "1,000", "1,234,567"]);
    }
}
