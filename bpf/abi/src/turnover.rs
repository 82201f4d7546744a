//! How many flows came into `FLOWS` and how many were taken out of it, from which follows
//! how many had to give way.
//!
//! The kernel does not tell what an LRU hash evicts (kernel/bpf/bpf_lru_list.c). But an entry that
//! was entered and is neither there nor was taken out has been evicted.

use crate::reason::REASONS_PER_PROGRAM;

/// What happened to a flow's entry.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turnover {
    /// Entered by an init program, where there was none or that of a connection that has ended.
    Entered = 0,
    /// Closed by a program: the connection begins or ends. Its word may stay, and is not counted as
    /// an entry.
    Removed = 1,
    /// Taken out by the daemon, which alone writes this one, at the first CPU.
    Cleared = 2,
    /// No count: where a processor's [`Window`](crate::admission::Window) begins.
    WindowBegun = 3,
    /// What the processor has entered in that window.
    WindowEntered = 4,
    /// Whether a packet of a new flow has drawn its place at the processor and not taken it yet.
    WindowDrawn = 5,
}

impl Turnover {
    /// Where it is counted: behind the reasons of the four programs.
    pub const fn index(self) -> u32 {
        4 * REASONS_PER_PROGRAM + self as u32
    }
}

/// Counters in all.
pub const COUNTERS: u32 = Turnover::WindowDrawn.index() + 1;

/// How many entries had to give way to others, given how many came, went and are there. Not more
/// than `entered` allows: what is counted and what is there are looked at one after the other.
pub const fn evicted(entered: u64, removed: u64, cleared: u64, present: u64) -> u64 {
    entered.saturating_sub(removed.saturating_add(cleared).saturating_add(present))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Program;

    #[test]
    fn they_are_behind_the_last_program() {
        let last = Program::IngressInit as u32 * REASONS_PER_PROGRAM + REASONS_PER_PROGRAM - 1;
        assert_eq!(Turnover::Entered.index(), last + 1);
        assert_eq!(COUNTERS, last + 7);
    }

    #[test]
    fn what_is_neither_there_nor_taken_out_was_evicted() {
        assert_eq!(evicted(100, 10, 20, 30), 40);
        assert_eq!(evicted(100, 10, 20, 70), 0);
        // One more was entered since.
        assert_eq!(evicted(100, 10, 20, 71), 0);
    }
}
