//! Ever more flows that take turns over a filter cache of a fixed size.

use std::{path::Path, time::Duration};

use crate::{
    column::{Bed, Column, Kind, Wire},
    metric::{Row, thousands},
    programs::times,
    rounds::{Cell, Effort, once},
    traffic::Workload,
};

/// Places of the filter cache.
const ROOM: u32 = 1024;
/// Flows: half of the places, twice and twenty times as many.
const STEPS: [u32; 3] = [ROOM / 2, 2 * ROOM, 20 * ROOM];
/// As long as the first round of all flows takes, and longer: conntrack enters them in it.
const WARM: Duration = Duration::from_secs(2);

/// What both columns cost, for the plot.
pub const PLOTTED: [&str; 2] = ["overlay, us", "oncache, us"];

/// Measures the steps up to `most`: the plain overlay, oncache and its variants, round by round.
pub fn run(
    oncache: &Path,
    variants: &[Column],
    effort: Effort,
    most: u32,
) -> Result<Vec<Row>, String> {
    let usual = Column::usual(oncache).into_iter();
    let usual = usual.filter(|column| matches!(column.kind, Kind::Overlay | Kind::Oncache));
    let columns: Vec<Column> = usual.chain(variants.iter().cloned()).collect();
    let mut rows = Vec::new();
    for flows in super::steps(&STEPS, most) {
        eprintln!("{flows} flows over {ROOM} places");
        // Anew for each step: a cache remembers that it was crowded for a lease.
        let beds = columns
            .iter()
            .map(|column| Bed::with(column, Wire::Whole, |config| config.flows(ROOM)))
            .collect::<Result<Vec<_>, _>>()?;
        rows.push(step(&beds, flows, effort)?);
    }
    Ok(rows)
}

fn step(beds: &[Bed], flows: u32, effort: Effort) -> Result<Row, String> {
    let workload = Workload::Crowd(flows);
    for bed in beds {
        let first = Effort {
            warm: WARM,
            ..effort
        };
        once(bed, workload, first, &mut Cell::default())?;
    }
    let mut row = Row::new([thousands(flows.into())]);
    for round in 1..=effort.rounds {
        eprintln!("round {round} of {}", effort.rounds);
        let mut cells = vec![Cell::default(); beds.len()];
        // Each of them first in turn: all see the same machine.
        for turn in 0..beds.len() {
            let number = (turn + round) % beds.len();
            once(&beds[number], workload, effort, &mut cells[number])?;
        }
        for (bed, cell) in beds.iter().zip(&cells) {
            let name = &bed.column.name;
            row.push(&format!("{name}, us per exchange"), cell.cost.median());
        }
        for (bed, cell) in beds.iter().zip(&cells).skip(1) {
            let name = &bed.column.name;
            let plain = &cells[0];
            row.push(
                &format!("{name}, of overlay's rate by processor time"),
                plain.cost.median() / cell.cost.median(),
            );
            row.push(
                &format!("{name}, of overlay's rate by the clock"),
                cell.rate.median() / plain.rate.median(),
            );
            row.push(
                &format!("{name}, hit ratio, %"),
                cell.hit_ratio.median() * 100.0,
            );
        }
    }
    for bed in beds {
        for time in times(bed, workload, effort.cpu, effort.program_time)? {
            let name = &bed.column.name;
            row.push(&format!("{name}, {}, ns", time.program), time.median);
        }
    }
    Ok(row)
}
