//! A packet's next step: what the programs and the slow path do with it.

use oncache_abi::{
    container::MacWord,
    entry::FlowWord,
    flow::{EGRESS, INGRESS, Verdict, VerdictWord},
    mark::{EGRESS_MISS, INGRESS_MISS, Lesson, MarkField},
    settings::Settings,
};

use super::{KEY, Seen, State};
use crate::scenario::{Flaw, Scenario};

/// Where a packet is, and what its program has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    Outside,
    /// `egress` or `ingress` has read the epoch.
    Entered {
        epoch: u32,
    },
    /// ... and found the flow's word good; it carries the packet if the headers are good, too.
    Allowed {
        epoch: u32,
        by: [u8; 2],
    },
    /// On the slow path with its mark.
    Missed {
        mark: u32,
    },
    /// The rules of this version have passed it.
    Passed {
        mark: u32,
        rules: u8,
    },
    /// `egress_init` or `ingress_init` has read from when on to learn: of the settings it reads the
    /// words in any order, and this is the worse one.
    Leaving {
        mark: u32,
        rules: u8,
        learn_from: u64,
    },
    /// ... and the epoch, and may learn. The headers are entered next.
    Learning {
        epoch: u32,
        rules: u8,
    },
    /// ... and has read the flow's word, to enter it with one direction more.
    Entering {
        epoch: u32,
        rules: u8,
        old: Option<(u64, [u8; 2])>,
    },
    Gone,
}

impl Stage {
    /// In a program, thus waited for by a grace period.
    pub(super) const fn runs(self) -> bool {
        !matches!(
            self,
            Self::Outside | Self::Missed { .. } | Self::Passed { .. } | Self::Gone
        )
    }

    /// On its way: it was marked, and has not been forgotten.
    pub(super) const fn waits(self) -> bool {
        !matches!(self, Self::Outside | Self::Gone)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Packet {
    pub(super) inbound: bool,
    /// It closes the flow before it is marked.
    pub(super) accepts: bool,
    pub(super) stage: Stage,
    /// Ticks since it came.
    pub(super) waited: u64,
    /// The present grace period waits for it.
    pub(super) awaited: bool,
}

impl State {
    pub(super) fn packet_step(
        &self,
        index: usize,
        scenario: &Scenario,
    ) -> Option<(&'static str, Seen, Self)> {
        let mut state = self.clone();
        let packet = self.packets[index];
        let (miss, direction) = if packet.inbound {
            (INGRESS_MISS, INGRESS)
        } else {
            (EGRESS_MISS, EGRESS)
        };
        let field = Self::field(scenario);
        let missed = |epoch| Stage::Missed {
            mark: field.missed(0, miss, epoch),
        };
        let mut seen = Seen::Nothing;
        let (what, next) = match packet.stage {
            Stage::Gone => return None,
            Stage::Outside => ("enters", Stage::Entered { epoch: self.epoch }),
            Stage::Entered { epoch } if packet.accepts => {
                state.flow = self.flow.map(|(word, by)| {
                    let word = VerdictWord(word);
                    (word.close(&KEY).unwrap_or(word).0, by)
                });
                ("closes the flow and misses", missed(epoch))
            }
            Stage::Entered { epoch } => match self.flow {
                Some((word, by)) if self.is_allowed(VerdictWord(word), epoch, scenario.flaw) => {
                    ("is allowed", Stage::Allowed { epoch, by })
                }
                _ => ("misses", missed(epoch)),
            },
            Stage::Allowed { epoch, by } => match self.headers(epoch) {
                Some(headers) => {
                    let [by_out, by_in] = by;
                    let learned_by = headers.into_iter().chain([by_out, by_in]);
                    seen = self.judge_hit(learned_by, self.now - packet.waited, scenario);
                    ("is carried", Stage::Gone)
                }
                None => ("misses", missed(epoch)),
            },
            Stage::Missed { mark } => self.slow_path(mark, field, scenario.flaw),
            Stage::Passed { mark, rules } => {
                let learn_from = self.learn_from;
                (
                    "leaves",
                    Stage::Leaving {
                        mark,
                        rules,
                        learn_from,
                    },
                )
            }
            Stage::Leaving {
                mark,
                rules,
                learn_from,
            } => {
                let settings = Settings {
                    learn_from,
                    ..self.settings(scenario)
                };
                let epoch = settings.epoch;
                match field.lesson(mark, miss, &settings, self.now) {
                    Lesson::Learn => ("may be learned from", Stage::Learning { epoch, rules }),
                    Lesson::Stale if scenario.flaw == Flaw::NoComparison => {
                        ("is not compared", Stage::Learning { epoch, rules })
                    }
                    Lesson::Stale => ("comes too late", Stage::Gone),
                    Lesson::NotEstablished => ("is not established", Stage::Gone),
                    Lesson::NotOurs => unreachable!("its own program marked it"),
                }
            }
            Stage::Learning { epoch, rules } => {
                if packet.inbound {
                    let mac = MacWord::new([2, 0, 0, 0, 0, rules], epoch);
                    state.mac = Some((mac.0, rules));
                } else {
                    let host = FlowWord::new(&KEY, u32::from(rules) + 1, epoch);
                    state.host = Some((host.0, rules));
                }
                let old = self.flow;
                (
                    "has its headers entered",
                    Stage::Entering { epoch, rules, old },
                )
            }
            Stage::Entering { epoch, rules, old } => {
                let epoch = match scenario.flaw {
                    Flaw::EpochReadAgain => self.epoch,
                    _ => epoch,
                };
                let flow = self.learned(old, direction, epoch, rules, scenario);
                state.flow = Some(flow);
                seen = self.judge_lesson(VerdictWord(flow.0), rules);
                ("has its flow entered", Stage::Gone)
            }
        };
        state.packets[index].stage = next;
        Some((what, seen, state))
    }

    fn is_allowed(&self, word: VerdictWord, epoch: u32, flaw: Flaw) -> bool {
        let now = match flaw {
            Flaw::NoLease => 0,
            _ => self.now,
        };
        word.judge(&KEY, now, epoch) == Verdict::Fast
    }

    /// The rules that the headers were learned by, if they are of `epoch`.
    fn headers(&self, epoch: u32) -> Option<[u8; 2]> {
        let (host, by_host) = self.host?;
        let (mac, by_mac) = self.mac?;
        FlowWord(host).value(&KEY, epoch)?;
        MacWord(mac).is_current(epoch).then_some([by_host, by_mac])
    }

    fn slow_path(&self, mark: u32, field: MarkField, flaw: Flaw) -> (&'static str, Stage) {
        let rules = self.rules;
        let established = mark | field.established_bit();
        match (Self::allows(rules), flaw) {
            (true, _) => (
                "is passed by the rules",
                Stage::Passed {
                    mark: established,
                    rules,
                },
            ),
            (false, Flaw::EstablishedUnseen) => (
                "is marked though refused",
                Stage::Passed {
                    mark: established,
                    rules: rules - 1,
                },
            ),
            (false, _) => ("is dropped by the rules", Stage::Gone),
        }
    }

    fn learned(
        &self,
        old: Option<(u64, [u8; 2])>,
        direction: u64,
        epoch: u32,
        rules: u8,
        scenario: &Scenario,
    ) -> (u64, [u8; 2]) {
        let (now, lease) = (self.now, u64::from(scenario.lease));
        let before = old.map(|(word, _)| VerdictWord(word));
        let word = VerdictWord::learn(before, &KEY, direction, now, lease, epoch);
        // The direction that was there keeps the rules that it was learned by.
        let mut by = old.map_or([rules; 2], |(_, by)| by);
        by[usize::from(direction == INGRESS)] = rules;
        if word.directions() == direction {
            by = [rules; 2];
        }
        (word.0, by)
    }
}
