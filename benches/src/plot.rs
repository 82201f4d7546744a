//! A bar chart as SVG, by hand: a few rectangles need no library.

use std::fmt::Write as _;

use crate::{rounds::Results, series::short};

const COLOURS: [&str; 6] = [
    "#bbbbbb", "#888888", "#d98e4a", "#2f6fb3", "#7fb069", "#9467bd",
];
const BAR: usize = 14;
const GAP: usize = 16;
const LEFT: usize = 110;
const WIDTH: usize = 520;
const TOP: usize = 44;

/// CPU cost of each workload by column, each workload's greatest bar of the same length.
pub fn costs(results: &Results, title: &str) -> String {
    let group = BAR * results.columns.len() + GAP;
    let height = TOP + group * results.rows.len() + 10;
    let total = LEFT + WIDTH + 170;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{total}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"16\" font-size=\"13\">{title}</text>\n"
    );
    for (number, column) in results.columns.iter().enumerate() {
        let (x, colour) = (LEFT + number * 90, COLOURS[number % COLOURS.len()]);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"24\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"33\">{column}</text>",
            x + 14
        );
    }
    for (index, row) in results.rows.iter().enumerate() {
        let top = TOP + index * group;
        let medians: Vec<f64> = row.cells.iter().map(|cell| cell.cost.median()).collect();
        let greatest = medians.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{}\">{}</text>",
            top + group / 2,
            row.workload
        );
        for (number, median) in medians.iter().enumerate() {
            let y = top + number * BAR;
            let length = median / greatest * WIDTH as f64;
            let colour = COLOURS[number % COLOURS.len()];
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{} {}</text>",
                BAR - 2,
                LEFT as f64 + length + 4.0,
                y + BAR - 4,
                short(*median),
                row.workload.cost_unit(),
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
