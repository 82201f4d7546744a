//! The figures as JSON.

use serde_json::{Value, json};

use crate::{rounds::Results, series::Series};

/// Everything that was measured on one kind of wire.
pub fn results(results: &Results) -> Value {
    let rows: Vec<Value> = results
        .rows
        .iter()
        .flat_map(|row| {
            row.cells.iter().zip(&results.columns).map(|(cell, column)| {
                json!({
                    "workload": row.workload.to_string(),
                    "column": column,
                    "rate": spread(&cell.rate),
                    "rate_unit": row.workload.rate_unit(),
                    "cost": spread(&cell.cost),
                    "cost_unit": row.workload.cost_unit(),
                    "hit_ratio": (cell.hit_ratio.median() > 0.0).then(|| spread(&cell.hit_ratio)),
                    "share_of_the_cpu": spread(&cell.share),
                })
            })
        })
        .collect();
    let programs: Vec<Value> = results
        .programs
        .iter()
        .flat_map(|(column, workload, times)| {
            times.iter().map(move |time| {
                json!({
                    "column": column,
                    "workload": workload.to_string(),
                    "program": time.program,
                    "median_ns": time.median,
                    "least_ns": time.least,
                    "runs": time.runs,
                    "code_bytes": time.code,
                })
            })
        })
        .collect();
    json!({ "figures": rows, "programs": programs })
}

fn spread(series: &Series) -> Value {
    let [least, median, greatest] = series.spread();
    json!({ "least": least, "median": median, "greatest": greatest })
}
