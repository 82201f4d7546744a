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
        // Anew for each step: a cache remembers that it was crowded for a lease. And each column twice, in
        // an order that is the same from both ends: conntrack has one hash for all hosts, in which the flows
        // of those that began later are found sooner (net/netfilter/nf_conntrack_core.c,
        // `__nf_conntrack_hash_insert`), a twentieth of the cost from one bed to the next.
        let beds = columns
            .iter()
            .chain(columns.iter().rev())
            .map(|column| Bed::with(column, Wire::Whole, |config| config.flows(ROOM)))
            .collect::<Result<Vec<_>, _>>()?;
        rows.push(step(&beds, flows, effort)?);
    }
    Ok(rows)
}

/// Rounds on the beds, which are each column's twice, from outside inwards.
fn step(beds: &[Bed], flows: u32, effort: Effort) -> Result<Row, String> {
    let columns = beds.len() / 2;
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
        let both = |number: usize, of: fn(&Cell) -> f64| {
            f64::midpoint(of(&cells[number]), of(&cells[beds.len() - 1 - number]))
        };
        let cost = |number| both(number, |cell| cell.cost.median());
        let rate = |number| both(number, |cell| cell.rate.median());
        let names = beds[..columns].iter().map(|bed| &bed.column.name);
        for (number, name) in names.clone().enumerate() {
            row.push(&format!("{name}, us per exchange"), cost(number));
        }
        for (number, name) in names.enumerate().skip(1) {
            row.push(
                &format!("{name}, of overlay's rate by processor time"),
                cost(0) / cost(number),
            );
            row.push(
                &format!("{name}, of overlay's rate by the clock"),
                rate(number) / rate(0),
            );
            row.push(
                &format!("{name}, hit ratio, %"),
                both(number, |cell| cell.hit_ratio.median()) * 100.0,
            );
        }
    }
    for bed in &beds[..columns] {
        for time in times(bed, workload, effort.cpu, effort.program_time)? {
            let name = &bed.column.name;
            row.push(&format!("{name}, {}, ns", time.program), time.median);
        }
    }
    Ok(row)
}
