//! docs/benchmarks.md: what is between two marks is made anew, and the plots beside it.

use std::{fs, process::Command};

use crate::{
    applications::{self, COST},
    column::Wire,
    metric::{self, Row},
    plot,
    rounds::{Effort, Results},
    sweep::Sweep,
    table::{self, markdown},
};

const DOCUMENT: &str = "docs/benchmarks.md";
const END: &str = "<!-- end of figures -->\n";

/// The marks that begin a section.
const FIGURES: &str = "<!-- figures: made by `make bench` -->\n";
const APPLICATIONS: &str = "<!-- figures: made by `make bench-applications` -->\n";

/// Writes the figures into the document, and one plot for each kind of wire.
pub fn update(all: &[(Wire, Results)], effort: Effort) -> Result<(), String> {
    let mut figures = machine(effort);
    for (wire, results) in all {
        let plot = format!("benchmarks-{}.svg", wire.name());
        let title = format!(
            "CPU cost, both ends and all between them; wire: {}",
            wire.name()
        );
        write(&format!("docs/{plot}"), &plot::costs(results, &title))?;
        figures += &format!("\n### Wire: {}\n\n![CPU cost]({plot})\n\n", wire.name());
        figures += &markdown(&table::figures(results));
        figures += "\noncache divided by the others; more is better of rates, less of CPU:\n\n";
        figures += &markdown(&table::ratios(results));
        figures += "\nTime of the programs by `bpf_stats`:\n\n";
        figures += &markdown(&table::programs(results));
    }
    replace(FIGURES, &figures)
}

/// The same of the sweeps, each of which has a section of its own.
pub fn update_sweeps(all: &[(Sweep, Vec<Row>)], effort: Effort) -> Result<(), String> {
    for (sweep, rows) in all {
        let mut figures = machine(effort);
        let name = sweep.name();
        let plot = format!("benchmarks-{name}.svg");
        let drawn = plot::rows(rows, sweep.plotted(), &format!("By {name}"));
        write(&format!("docs/{plot}"), &drawn)?;
        figures += &format!("\n![By {name}]({plot})\n\n");
        figures += &markdown(&table::turned(&metric::table(&[name], rows)));
        let mark = format!("<!-- figures by {name}: made by `make bench-sweep` -->\n");
        replace(&mark, &figures)?;
    }
    Ok(())
}

/// The same of the applications.
pub fn update_applications(heads: &[&str], rows: &[Row], effort: Effort) -> Result<(), String> {
    let mut figures = machine(effort);
    let plot = "benchmarks-applications.svg";
    let title = "CPU a request, server and client and all between them";
    write(&format!("docs/{plot}"), &plot::by_head(rows, COST, title))?;
    figures += &format!("\n![Applications]({plot})\n\n");
    figures += &markdown(&metric::table(heads, rows));
    figures += "\noncache divided by the others; more is better of rates, less of the rest:\n\n";
    figures += &markdown(&applications::ratios(rows));
    replace(APPLICATIONS, &figures)
}

/// Replaces what is between a section's mark and the end of figures.
fn replace(begin: &str, figures: &str) -> Result<(), String> {
    let old = fs::read_to_string(DOCUMENT).map_err(|error| format!("{DOCUMENT}: {error}"))?;
    let missing = || format!("{DOCUMENT}: no line {:?} or {:?}", begin.trim(), END.trim());
    let (before, rest) = old.split_once(begin).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    write(DOCUMENT, &format!("{before}{begin}{figures}{END}{after}"))
}

fn write(path: &str, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{path}: {error}"))
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
        "\nMeasured on {}, Linux {} on {cpus} x {model}; {} rounds, each workload {} ms a round.\n",
        today(),
        read("/proc/sys/kernel/osrelease").trim(),
        effort.rounds,
        effort.time.as_millis(),
    )
}

/// The date, as the machine has it.
fn today() -> String {
    let date = Command::new("date").args(["--utc", "+%F"]).output();
    date.map_or_else(
        |_| "an unknown day".to_owned(),
        |date| String::from_utf8_lossy(&date.stdout).trim().to_owned(),
    )
}
