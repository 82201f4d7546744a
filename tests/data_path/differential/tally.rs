//! How many packets of each class there were, and which way they went.

use std::{collections::BTreeMap, fmt};

use crate::differential::{
    compare::Fate,
    packet::{Class, Packet},
};

/// Counts by class.
#[derive(Debug, Default)]
pub struct Tally {
    lines: BTreeMap<Class, Line>,
    pub overtakings: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    packets: usize,
    fates: Fate,
}

impl Tally {
    pub fn add(&mut self, packets: &[Packet], fates: &[Fate]) {
        for (packet, fate) in packets.iter().zip(fates) {
            let line = self.lines.entry(packet.class).or_default();
            line.packets += 1;
            line.fates.add(fate);
        }
    }

    /// Frames of a class.
    pub fn of(&self, class: Class) -> Fate {
        self.lines
            .get(&class)
            .map_or_else(Fate::default, |line| line.fates)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<17}{:>9}{:>9}{:>9}{:>10}{:>10}",
            "class", "packets", "frames", "arrived", "fast out", "fast in"
        )?;
        let mut all = Line::default();
        for (class, line) in &self.lines {
            writeln!(f, "{:<17}{line}", class.name())?;
            all.packets += line.packets;
            all.fates.add(&line.fates);
        }
        writeln!(f, "{:<17}{all}", "all")?;
        write!(f, "overtakings at a change of paths: {}", self.overtakings)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, fates } = self;
        let Fate {
            sent,
            arrived,
            fast_out,
            fast_in,
        } = fates;
        write!(
            f,
            "{packets:>9}{sent:>9}{arrived:>9}{fast_out:>10}{fast_in:>10}"
        )
    }
}
