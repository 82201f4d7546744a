//! The clock that leases are counted by.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use oncache_abi::flow::{TICK_SHIFT, ticks};

/// The present lease tick, by the clock that the programs read (`CLOCK_MONOTONIC`).
#[must_use]
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    ticks(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// A duration in lease ticks, at least one.
#[must_use]
pub fn to_ticks(duration: Duration) -> u32 {
    let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    u32::try_from(ticks(nanoseconds)).unwrap_or(u32::MAX).max(1)
}

/// Lease ticks as a duration.
#[must_use]
pub fn from_ticks(ticks: u64) -> Duration {
    Duration::from_nanos(ticks << TICK_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_survives_the_conversion_within_a_tick() {
        let lease = Duration::from_secs(30);
        let back = from_ticks(to_ticks(lease).into());
        assert!(back <= lease && lease - back < from_ticks(1), "{back:?}");
    }

    #[test]
    fn the_shortest_lease_is_a_tick() {
        assert_eq!(to_ticks(Duration::ZERO), 1);
    }
}
