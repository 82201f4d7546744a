//! Measures oncache against the bare host, the host's firewall, the plain overlay and the limit of a
//! design with veth devices: `make bench`, `make bench-quick`; what more flows, peers and containers
//! cost: `make bench-sweep`; and applications: `make bench-applications`. docs/benchmarks.md says how to read it.

mod applications;
mod column;
mod cpu;
mod daemon;
mod document;
mod entries;
mod floor;
mod json;
mod metric;
mod path;
mod plot;
mod programs;
mod rounds;
mod series;
mod sweep;
mod table;
mod traffic;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use column::{Bed, Column, Kind, Wire};
use metric::Row;
use rounds::{Effort, Results};
use sweep::Sweep;
use table::{aligned, turned};
use traffic::Workload;

/// Measures oncache against the plain overlay, the bare host and the limit of its design.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The oncache to measure.
    #[arg(long, default_value = "target/release/oncache")]
    oncache: PathBuf,
    /// Short, few rounds: for hit ratios and sanity, not for times.
    #[arg(long)]
    quick: bool,
    /// Rounds, each of all workloads on all columns.
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds that each workload is measured.
    #[arg(long)]
    time: Option<u64>,
    /// The CPU that both ends of the traffic share.
    #[arg(long, default_value_t = 1)]
    cpu: usize,
    /// Only these columns.
    #[arg(long, value_delimiter = ',')]
    columns: Vec<String>,
    /// Only the workloads whose name begins so, such as `TCP_RR`.
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// One more column by another binary of oncache: NAME=PATH.
    #[arg(long, value_name = "NAME=PATH")]
    variant: Vec<String>,
    /// Only this kind of wire.
    #[arg(long, value_enum)]
    wire: Option<Wire>,
    /// Instead: the same with ever more flows, peers or containers, or more flows than places.
    #[arg(long, value_enum, value_delimiter = ',')]
    sweep: Vec<Sweep>,
    /// Instead: memcached, PostgreSQL and nginx.
    #[arg(long, conflicts_with = "sweep")]
    applications: bool,
    /// How far sweeps go.
    #[arg(long, default_value_t = 1_000_000)]
    most: u32,
    /// Writes all figures there as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the figures into docs/benchmarks.md and the plots beside it.
    #[arg(long)]
    document: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = if arguments.applications {
        applications(&arguments)
    } else if arguments.sweep.is_empty() {
        bench(&arguments)
    } else {
        sweeps(&arguments)
    };
    if let Err(error) = &outcome {
        eprintln!("bench: {error}");
    }
    if arguments.quick {
        // In the words that .ci/test counts.
        let (word, passed) = match outcome {
            Ok(()) => ("ok", 1),
            Err(_) => ("FAILED", 0),
        };
        println!(
            "\ntest result: {word}. {passed} passed; {} failed; 0 ignored",
            1 - passed
        );
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn built(arguments: &Arguments) -> Result<(), String> {
    let path = &arguments.oncache;
    if path.is_file() {
        Ok(())
    } else {
        Err(format!("no {}; run `make build`", path.display()))
    }
}

fn sweeps(arguments: &Arguments) -> Result<(), String> {
    built(arguments)?;
    let effort = effort(arguments);
    let variants = variants(arguments)?;
    let mut all: Vec<(Sweep, Vec<Row>)> = Vec::new();
    for sweep in Sweep::ALL {
        if !arguments.sweep.contains(&sweep) {
            continue;
        }
        let rows = sweep.run(&arguments.oncache, &variants, effort, arguments.most)?;
        println!("\nBy {}.\n", sweep.name());
        print!(
            "{}",
            aligned(&turned(&metric::table(&[sweep.name()], &rows)))
        );
        all.push((sweep, rows));
    }
    if let Some(path) = &arguments.json {
        let whole = all
            .iter()
            .map(|(sweep, rows)| (sweep.name().to_owned(), metric::json(&[sweep.name()], rows)));
        write_json(path, whole.collect())?;
    }
    if arguments.document {
        document::update_sweeps(&all, effort)?;
    }
    Ok(())
}

fn applications(arguments: &Arguments) -> Result<(), String> {
    built(arguments)?;
    let mut columns = chosen_columns(arguments)?;
    if arguments.columns.is_empty() {
        columns.retain(applications::usual);
    }
    let mut effort = effort(arguments);
    // A client's own clock counts in seconds.
    effort.time = effort.time.max(Duration::from_secs(APPLICATION_SECONDS));
    let rows = applications::run(&columns, effort)?;
    let heads = ["application", "column"];
    println!("\nMedian (least-greatest) of {} rounds.\n", effort.rounds);
    print!("{}", aligned(&metric::table(&heads, &rows)));
    println!("\noncache divided by the others; more is better of rates, less of the rest.\n");
    print!("{}", aligned(&applications::ratios(&rows)));
    if let Some(path) = &arguments.json {
        let whole = [("applications".to_owned(), metric::json(&heads, &rows))];
        write_json(path, whole.into_iter().collect())?;
    }
    if arguments.document {
        document::update_applications(&heads, &rows, effort)?;
    }
    Ok(())
}

/// The least time that an application is measured a round.
const APPLICATION_SECONDS: u64 = 2;

fn write_json(
    path: &Path,
    whole: serde_json::Map<String, serde_json::Value>,
) -> Result<(), String> {
    let text = format!("{:#}\n", serde_json::Value::Object(whole));
    fs::write(path, text).map_err(|error| format!("write {}: {error}", path.display()))
}

fn bench(arguments: &Arguments) -> Result<(), String> {
    built(arguments)?;
    let columns = chosen_columns(arguments)?;
    let workloads = chosen_workloads(arguments)?;
    let effort = effort(arguments);
    let wires = match arguments.wire {
        Some(wire) => vec![wire],
        None => vec![Wire::Whole, Wire::Segmenting],
    };
    let mut all: Vec<(Wire, Results)> = Vec::new();
    for wire in wires {
        let beds: Result<Vec<Bed>, String> = columns
            .iter()
            .map(|column| Bed::new(column, wire))
            .collect();
        let results = rounds::run(&beds?, &workloads, effort)?;
        println!(
            "\nWire: {}. Median (least-greatest) of {} rounds.\n",
            wire.name(),
            effort.rounds
        );
        print!("{}", aligned(&table::figures(&results)));
        println!("\noncache divided by the others; more is better of rates, less of CPU.\n");
        print!("{}", aligned(&table::ratios(&results)));
        println!("\nTime of the programs by bpf_stats.\n");
        print!("{}", aligned(&table::programs(&results)));
        all.push((wire, results));
    }
    if let Some(path) = &arguments.json {
        let whole = all
            .iter()
            .map(|(wire, results)| (wire.name().to_owned(), json::results(results)));
        write_json(path, whole.collect())?;
    }
    if arguments.document {
        document::update(&all, effort)?;
    }
    Ok(())
}

fn chosen_columns(arguments: &Arguments) -> Result<Vec<Column>, String> {
    let mut columns = Column::usual(&arguments.oncache);
    if !arguments.columns.is_empty() {
        columns.retain(|column| arguments.columns.contains(&column.name));
    }
    columns.extend(variants(arguments)?);
    if columns.is_empty() {
        return Err("no column is left; there are host0, host, overlay, oncache, floor".to_owned());
    }
    Ok(columns)
}

/// The columns by other binaries.
fn variants(arguments: &Arguments) -> Result<Vec<Column>, String> {
    let column = |variant: &String| {
        let (name, path) = variant
            .split_once('=')
            .ok_or_else(|| format!("--variant {variant}: not NAME=PATH"))?;
        Ok(Column {
            name: name.to_owned(),
            kind: Kind::Oncache,
            oncache: path.into(),
        })
    };
    arguments.variant.iter().map(column).collect()
}

fn chosen_workloads(arguments: &Arguments) -> Result<Vec<Workload>, String> {
    let mut workloads = if arguments.quick {
        Workload::quick()
    } else {
        Workload::all()
    };
    if !arguments.workloads.is_empty() {
        let named = |workload: &Workload| {
            let name = workload.to_string();
            arguments
                .workloads
                .iter()
                .any(|wanted| name.starts_with(wanted.as_str()))
        };
        workloads.retain(named);
        if workloads.is_empty() {
            return Err(format!(
                "no workload is called so: {:?}",
                arguments.workloads
            ));
        }
    }
    Ok(workloads)
}

fn effort(arguments: &Arguments) -> Effort {
    let (rounds, time, program_time) = if arguments.quick {
        (2, 250, 300)
    } else {
        (7, 1000, 2000)
    };
    Effort {
        rounds: arguments.rounds.unwrap_or(rounds),
        warm: Duration::from_millis(100),
        time: Duration::from_millis(arguments.time.unwrap_or(time)),
        program_time: Duration::from_millis(program_time),
        cpu: arguments.cpu,
    }
}
