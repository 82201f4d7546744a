//! Per-CPU counters by program and reason.

use oncache_abi::reason::{Program, REASONS_PER_PROGRAM, Reason};

use crate::maps::COUNTERS;

/// Counts one packet (an aggregate counts once).
#[inline(always)]
pub fn count(program: Program, reason: Reason) {
    if let Some(counter) =
        COUNTERS.get_ptr_mut(program as u32 * REASONS_PER_PROGRAM + reason as u32)
    {
        // SAFETY: the element is this CPU's own; tc programs on one CPU do not preempt each other
        // in softirq, and a lost increment from process context costs a count, nothing else.
        unsafe { *counter += 1 };
    }
}
