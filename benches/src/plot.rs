//! A bar chart as SVG, by hand: a few rectangles need no library.

use std::fmt::Write as _;

use crate::{metric::Row, rounds::Results, series::short};

const COLOURS: [&str; 6] = [
    "#bbbbbb", "#888888", "#d98e4a", "#2f6fb3", "#7fb069", "#9467bd",
];
const BAR: usize = 14;
const GAP: usize = 16;
const WIDTH: usize = 520;
const TOP: usize = 44;
/// About what a letter takes.
const LETTER: usize = 6;

/// Bars that are compared with each other: the greatest is as long as there is room.
struct Group {
    name: String,
    unit: String,
    /// None where it was not measured.
    values: Vec<Option<f64>>,
}

/// CPU cost of each workload by column.
pub fn costs(results: &Results, title: &str) -> String {
    let groups = results.rows.iter().map(|row| Group {
        name: row.workload.to_string(),
        unit: row.workload.cost_unit().to_owned(),
        values: row
            .cells
            .iter()
            .map(|cell| Some(cell.cost.median()))
            .collect(),
    });
    bars(title, &results.columns, &groups.collect::<Vec<_>>())
}

/// Some metrics of each row, those whose name begins so.
pub fn rows(rows: &[Row], metrics: &[&str], title: &str) -> String {
    let columns: Vec<String> = rows.iter().map(|row| row.head.join(", ")).collect();
    let groups = metrics.iter().filter_map(|wanted| {
        let mut all = rows.iter().flat_map(|row| &row.metrics);
        let name = &all.find(|metric| metric.name.starts_with(wanted))?.name;
        let (what, unit) = name.rsplit_once(", ").unwrap_or((name, ""));
        Some(Group {
            name: what.to_owned(),
            unit: unit.to_owned(),
            values: rows.iter().map(|row| row.median(name)).collect(),
        })
    });
    bars(title, &columns, &groups.collect::<Vec<_>>())
}

/// One metric of rows whose heads are two: a group for each first, a column for each second.
pub fn by_head(rows: &[Row], metric: &str, title: &str) -> String {
    let mut columns: Vec<String> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for row in rows {
        for (all, head) in [(&mut names, &row.head[0]), (&mut columns, &row.head[1])] {
            if !all.contains(head) {
                all.push(head.clone());
            }
        }
    }
    let groups: Vec<Group> = names
        .iter()
        .map(|name| Group {
            name: name.clone(),
            unit: metric
                .rsplit_once(", ")
                .map_or("", |(_, unit)| unit)
                .to_owned(),
            values: columns
                .iter()
                .map(|column| {
                    let row = rows
                        .iter()
                        .find(|row| row.head == [name.as_str(), column.as_str()]);
                    row.and_then(|row| row.median(metric))
                })
                .collect(),
        })
        .collect();
    bars(title, &columns, &groups)
}

fn bars(title: &str, columns: &[String], groups: &[Group]) -> String {
    let longest = |names: &mut dyn Iterator<Item = &String>| names.map(|it| it.len()).max();
    let left = 16 + LETTER * longest(&mut groups.iter().map(|it| &it.name)).unwrap_or(0);
    let legend = 24 + LETTER * longest(&mut columns.iter()).unwrap_or(0).max(8);
    let group_height = BAR * columns.len() + GAP;
    let height = TOP + group_height * groups.len() + 10;
    let total = left + WIDTH + 170;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{total}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"16\" font-size=\"13\">{title}</text>\n"
    );
    for (number, column) in columns.iter().enumerate() {
        let (x, colour) = (left + number * legend, COLOURS[number % COLOURS.len()]);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"24\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"33\">{column}</text>",
            x + 14
        );
    }
    for (index, group) in groups.iter().enumerate() {
        let top = TOP + index * group_height;
        let greatest = group.values.iter().flatten().copied();
        let greatest = greatest.fold(f64::MIN_POSITIVE, f64::max);
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{}\">{}</text>",
            top + group_height / 2,
            group.name
        );
        for (number, value) in group.values.iter().enumerate() {
            let Some(value) = value else { continue };
            let y = top + number * BAR;
            let length = value / greatest * WIDTH as f64;
            let colour = COLOURS[number % COLOURS.len()];
            let _ = writeln!(
                svg,
                "<rect x=\"{left}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{} {}</text>",
                BAR - 2,
                left as f64 + length + 4.0,
                y + BAR - 4,
                short(*value),
                group.unit,
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
