//! What is tried: calls and packets, the clock, and what is left out of the design.

/// A precaution of the design that is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flaw {
    /// None is.
    #[default]
    None,
    /// The epoch first, then the change.
    RaiseBeforeChange,
    /// An init program learns whatever the mark's epoch.
    NoComparison,
    /// An init program reads the epoch once to compare it, and again for what it enters.
    EpochReadAgain,
    /// The call returns with the new epoch, and does not wait for programs that read the old one.
    NoGracePeriod,
    /// The slow path's mark is set before its rules are asked.
    EstablishedUnseen,
    /// The epoch's bits in a mark are believed again at once.
    NoRest,
    /// That nothing is to be learned is written together with the epoch it is for.
    RestWithEpoch,
    /// Dead words stay in the caches.
    NoSweep,
    /// The end of the lease is not looked at.
    NoLease,
}

/// What somebody does, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Changes the rules and raises the epoch; when it returns, the old rules are no more.
    Change,
    /// Raises the epoch because of a notification, and waits for nobody.
    Notified,
    /// Raises the epoch 65,535 times, which takes longer than any packet waits, and ends with the
    /// sixteen bits of the epoch before; the caches are swept meanwhile.
    Circle,
    /// Changes the rules while no daemon runs.
    Unnoticed,
}

/// What is tried.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What somebody does, one call after the other.
    pub calls: Vec<Call>,
    /// Packets out and in.
    pub packets: [usize; 2],
    /// Packets out and in that close the flow and may be learned from all the same, as a SYN-ACK does.
    pub accepting: [usize; 2],
    /// Bits of the epoch in a mark.
    pub epoch_bits: u32,
    /// How far the clock goes, in ticks.
    pub time: u64,
    /// How many ticks a packet waits between two of its steps and the last, at most.
    pub patience: u64,
    /// How many ticks the epoch's bits in a mark rest.
    pub rest: u64,
    /// In ticks.
    pub lease: u32,
    /// What is left out of the design.
    pub flaw: Flaw,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            calls: Vec::new(),
            packets: [1, 1],
            accepting: [0, 0],
            epoch_bits: 9,
            time: 0,
            patience: 2,
            rest: 3,
            lease: 8,
            flaw: Flaw::None,
        }
    }
}
