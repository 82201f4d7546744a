//! Per-CPU counters by program and reason.

use oncache_abi::{
    reason::{Program, REASONS_PER_PROGRAM, Reason},
    turnover::Turnover,
};

use crate::maps::COUNTERS;

/// Counts one packet (an aggregate counts once).
#[inline(always)]
pub fn count(program: Program, reason: Reason) {
    add_one(program as u32 * REASONS_PER_PROGRAM + reason as u32);
}

/// What this CPU has counted so far; zero where there is no counter.
#[inline(always)]
pub fn counted(program: Program, reason: Reason) -> u64 {
    let index = program as u32 * REASONS_PER_PROGRAM + reason as u32;
    // SAFETY: the element is this CPU's own, see `add_one`.
    COUNTERS
        .get_ptr(index)
        .map_or(0, |counter| unsafe { *counter })
}

/// Counts an entry of `FLOWS` that came or went.
#[inline(always)]
pub fn count_turnover(turnover: Turnover) {
    add_one(turnover.index());
}

#[inline(always)]
fn add_one(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the element is this CPU's own; tc programs on one CPU do not preempt each other
        // in softirq, and a lost increment from process context costs a count, nothing else.
        unsafe { *counter += 1 };
    }
}
