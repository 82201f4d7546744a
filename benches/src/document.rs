//! docs/benchmarks.md: the part between two marks is made anew, and the plots beside it.

use std::fs;

use crate::{
    column::Wire,
    plot,
    rounds::{Effort, Results},
    table::{self, markdown},
};

const DOCUMENT: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- figures: made by `make bench` -->\n";
const END: &str = "<!-- end of figures -->\n";

/// Writes the figures into the document, and one plot for each kind of wire.
pub fn update(all: &[(Wire, Results)], effort: Effort) -> Result<(), String> {
    let failed = |path: &str, error: std::io::Error| format!("{path}: {error}");
    let old = fs::read_to_string(DOCUMENT).map_err(|error| failed(DOCUMENT, error))?;
    let missing = || format!("{DOCUMENT}: no line {:?} or {:?}", BEGIN.trim(), END.trim());
    let (before, rest) = old.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    let mut figures = machine(effort);
    for (wire, results) in all {
        let plot = format!("benchmarks-{}.svg", wire.name());
        let path = format!("docs/{plot}");
        let title = format!(
            "CPU cost, both ends and all between them; wire: {}",
            wire.name()
        );
        fs::write(&path, plot::costs(results, &title)).map_err(|error| failed(&path, error))?;
        figures += &format!("\n### Wire: {}\n\n![CPU cost]({plot})\n\n", wire.name());
        figures += &markdown(&table::figures(results));
        figures += "\noncache divided by the others; more is better of rates, less of CPU:\n\n";
        figures += &markdown(&table::ratios(results));
        figures += "\nTime of the programs by `bpf_stats`:\n\n";
        figures += &markdown(&table::programs(results));
    }
    let new = format!("{before}{BEGIN}{figures}{END}{after}");
    fs::write(DOCUMENT, new).map_err(|error| failed(DOCUMENT, error))
}

/// What the figures were measured on.
fn machine(effort: Effort) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model
        .unwrap_or("an unnamed CPU")
        .trim_start_matches([' ', '\t', ':']);
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "\nLinux {} on {cpus} x {model}; {} rounds, each workload {} ms a round.\n",
        read("/proc/sys/kernel/osrelease").trim(),
        effort.rounds,
        effort.time.as_millis(),
    )
}
