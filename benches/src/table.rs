//! The figures as text: for the terminal and, as Markdown, for the document.

use crate::{
    rounds::{Cell, Results, Row},
    series::{Series, short},
};

/// One table's rows; the first is its head.
pub type Table = Vec<Vec<String>>;

/// One of a cell's series.
type Pick = fn(&Cell) -> &Series;

/// Rate and cost of every column, with the spread, and the hit ratio beside it.
pub fn figures(results: &Results) -> Table {
    let mut head = vec!["workload".to_owned(), "unit".to_owned()];
    head.extend(results.columns.iter().cloned());
    head.push("hit ratio".to_owned());
    let mut table = vec![head];
    for row in &results.rows {
        let kinds: [(&str, Pick); 2] = [
            (row.workload.rate_unit(), |cell| &cell.rate),
            (row.workload.cost_unit(), |cell| &cell.cost),
        ];
        for (unit, pick) in kinds {
            let mut line = vec![row.workload.to_string(), unit.to_owned()];
            line.extend(row.cells.iter().map(|cell| spread(pick(cell))));
            line.push(hit_ratios(row));
            table.push(line);
        }
    }
    table
}

fn spread(series: &Series) -> String {
    let [least, median, greatest] = series.spread().map(short);
    format!("{median} ({least}-{greatest})")
}

fn hit_ratios(row: &Row) -> String {
    let ratios = row.cells.iter().map(|cell| cell.hit_ratio.spread());
    let shown: Vec<String> = ratios
        .filter(|[_, median, _]| *median > 0.0)
        .map(|[least, _, _]| format!("{:.2} %", least * 100.0))
        .collect();
    shown.join(", ")
}

/// The columns that oncache is compared with.
pub const AGAINST: [&str; 4] = ["host0", "host", "overlay", "floor"];

/// oncache's rate divided by each column's, and CPU cost likewise.
pub fn ratios(results: &Results) -> Table {
    let column = |name: &str| results.columns.iter().position(|column| column == name);
    let mut head = vec!["workload".to_owned(), "of".to_owned()];
    let against: Vec<&str> = AGAINST
        .into_iter()
        .filter(|name| column(name).is_some())
        .collect();
    head.extend(against.iter().map(|name| format!("/ {name}")));
    let mut table = vec![head];
    let Some(own) = column("oncache") else {
        return table;
    };
    for row in &results.rows {
        let kinds: [(&str, Pick); 2] = [("rate", |cell| &cell.rate), ("CPU", |cell| &cell.cost)];
        for (what, pick) in kinds {
            let mut line = vec![row.workload.to_string(), what.to_owned()];
            for name in &against {
                let other = column(name).map_or(0.0, |index| pick(&row.cells[index]).median());
                line.push(format!("{:.2}", pick(&row.cells[own]).median() / other));
            }
            table.push(line);
        }
    }
    table
}

/// What the programs take.
pub fn programs(results: &Results) -> Table {
    let head = [
        "column",
        "workload",
        "program",
        "ns, median",
        "ns, least",
        "runs",
        "bytes of code",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for (column, workload, times) in &results.programs {
        for time in times {
            table.push(vec![
                column.clone(),
                workload.to_string(),
                time.program.to_owned(),
                format!("{:.0}", time.median),
                format!("{:.0}", time.least),
                time.runs.to_string(),
                time.code.to_string(),
            ]);
        }
    }
    table
}

/// With rows as columns and columns as rows.
pub fn turned(table: &Table) -> Table {
    let columns = table.first().map_or(0, Vec::len);
    let column = |number: usize| table.iter().map(|row| row[number].clone()).collect();
    (0..columns).map(column).collect()
}

/// Aligned for a terminal.
pub fn aligned(table: &Table) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    table.iter().map(line).collect()
}

/// As Markdown.
pub fn markdown(table: &Table) -> String {
    let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
    let mut text = String::new();
    for (number, row) in table.iter().enumerate() {
        text.push_str(&line(row));
        if number == 0 {
            text.push_str(&format!("|{}\n", " --- |".repeat(row.len())));
        }
    }
    text
}
