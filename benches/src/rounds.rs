//! Rounds: each workload on each column in turn, so that what changes with time hits all alike.

use std::time::Duration;

use crate::{
    column::Bed,
    path::Passed,
    programs::{ProgramTime, times},
    series::Series,
    traffic::{Workload, measure},
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub rounds: usize,
    pub warm: Duration,
    pub time: Duration,
    /// For the programs' own time.
    pub program_time: Duration,
    /// Both ends run here.
    pub cpu: usize,
}

/// One column's figures of one workload.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    pub rate: Series,
    pub cost: Series,
    /// Where the column has caches.
    pub hit_ratio: Series,
    pub share: Series,
}

/// One workload's figures, column by column.
pub struct Row {
    pub workload: Workload,
    pub cells: Vec<Cell>,
}

/// All figures of one kind of wire.
pub struct Results {
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
    /// By column, where it has programs.
    pub programs: Vec<(String, Workload, Vec<ProgramTime>)>,
}

/// Measures everything, telling how far it is.
pub fn run(beds: &[Bed], workloads: &[Workload], effort: Effort) -> Result<Results, String> {
    let empty = |workload: &Workload| Row {
        workload: *workload,
        cells: vec![Cell::default(); beds.len()],
    };
    let mut rows: Vec<Row> = workloads.iter().map(empty).collect();
    for round in 1..=effort.rounds {
        eprintln!("round {round} of {}", effort.rounds);
        for row in &mut rows {
            for (bed, cell) in beds.iter().zip(&mut row.cells) {
                once(bed, row.workload, effort, cell)?;
            }
        }
    }
    let mut programs = Vec::new();
    for workload in [Workload::UdpRounds, Workload::TcpRounds] {
        for bed in beds {
            let times = times(bed, workload, effort.cpu, effort.program_time)?;
            programs.push((bed.column.name.clone(), workload, times));
        }
    }
    Ok(Results {
        columns: beds.iter().map(|bed| bed.column.name.clone()).collect(),
        rows,
        programs,
    })
}

/// Measures a workload on one bed, once.
pub fn once(bed: &Bed, workload: Workload, effort: Effort, cell: &mut Cell) -> Result<(), String> {
    let before = Passed::of(bed)?;
    let (client, server) = (&bed.client, &bed.server);
    let figure = measure(
        workload,
        client,
        server,
        effort.cpu,
        effort.warm,
        effort.time,
    )
    .map_err(|error| format!("{}, {error}", bed.column.name))?;
    let hit_ratio = Passed::of(bed)?.check(before, bed, workload)?;
    cell.rate.push(figure.rate);
    cell.cost.push(figure.cost);
    cell.share.push(figure.share);
    if let Some(ratio) = hit_ratio {
        cell.hit_ratio.push(ratio);
    }
    Ok(())
}
