//! Tables for people.

use comfy_table::{Cell, CellAlignment, Table, presets::NOTHING};

/// A table without lines; the columns whose number is in `right` are aligned to the right.
pub fn table<const N: usize>(
    heads: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    right: &[usize],
) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(heads);
    for row in rows {
        table.add_row(row.map(Cell::new));
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        let left = if number == 0 { 0 } else { 1 };
        column.set_padding((left, 1));
        if right.contains(&number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// A ratio in per cent.
pub fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.2} %", ratio * 100.0))
}
