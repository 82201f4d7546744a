//! One host, one flow, its packets in both directions, the rules, the daemon and the clock.
//!
//! What the eBPF programs decide is decided by their own functions; what is modelled is where the
//! steps of programs, daemon and slow path may fall between each other. Beside every word the model
//! keeps by which rules it was learned, which nobody decides by and every promise is about.

use oncache_abi::{
    container::MacWord,
    entry::FlowWord,
    flow::{EGRESS, FlowKey, INGRESS, Verdict, VerdictWord},
    mark::{EGRESS_MISS, EPOCH_SHIFT, INGRESS_MISS, Lesson, MarkField},
    settings::Settings,
};

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

const KEY: FlowKey = FlowKey {
    local: 0x0201_2a0a,
    remote: 0x0302_2a0a,
    local_port: 0x5000,
    remote_port: 0x9c40,
    protocol: 17,
    reserved: [0; 3],
};

/// Where a packet is, and what its program has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
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
    const fn runs(self) -> bool {
        !matches!(
            self,
            Self::Outside | Self::Missed { .. } | Self::Passed { .. } | Self::Gone
        )
    }

    /// On its way: it was marked, and has not been forgotten.
    const fn waits(self) -> bool {
        !matches!(self, Self::Outside | Self::Gone)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Packet {
    inbound: bool,
    /// It closes the flow before it is marked.
    accepts: bool,
    stage: Stage,
    /// Ticks since it came.
    waited: u64,
    /// The present grace period waits for it.
    awaited: bool,
}

/// A call's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Begin,
    /// Waits until the rest is known to all programs, before the epoch is written.
    Resting,
    /// To write the epoch.
    Raise,
    /// Waits until nobody decides by the old epoch.
    Settling,
    /// To change the rules after all.
    Late,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    now: u64,
    epoch: u32,
    learn_from: u64,
    half_began: u64,
    /// Version of the rules: even ones allow the flow, odd ones do not; each has other headers.
    rules: u8,
    /// The version that the last change's call has returned with.
    returned: u8,
    /// When the rules were changed behind the daemon's back.
    unnoticed: Option<u64>,
    call: usize,
    phase: Phase,
    /// The flow's word, and the rules that each direction (out, in) was learned by.
    flow: Option<(u64, [u8; 2])>,
    /// The remote container's host.
    host: Option<(u64, u8)>,
    /// The local container's MAC address.
    mac: Option<(u64, u8)>,
    packets: Vec<Packet>,
}

/// A step, in words.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    whose: &'static str,
    what: &'static str,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.whose, self.what)
    }
}

/// What a step shows.
pub enum Seen {
    Nothing,
    /// The fast path carries a packet.
    Hit {
        by_last_rules: bool,
    },
    /// A promise is broken.
    Broken(String),
}

impl State {
    pub fn new(scenario: &Scenario) -> Self {
        let packet = |inbound, accepts| Packet {
            inbound,
            accepts,
            stage: Stage::Outside,
            waited: 0,
            awaited: false,
        };
        let kinds = [(scenario.packets, false), (scenario.accepting, true)];
        let packets = kinds.into_iter().flat_map(|([out, back], accepts)| {
            let out = vec![packet(false, accepts); out];
            out.into_iter().chain(vec![packet(true, accepts); back])
        });
        Self {
            // No half has begun lately.
            now: scenario.rest + 1,
            epoch: 4,
            learn_from: 0,
            half_began: 0,
            rules: 0,
            returned: 0,
            unnoticed: None,
            call: 0,
            phase: Phase::Begin,
            flow: None,
            host: None,
            mac: None,
            packets: packets.collect(),
        }
    }

    /// Every step that may come next, what it shows, and the state it leads to.
    pub fn steps(&self, scenario: &Scenario) -> Vec<(Step, Seen, Self)> {
        let mut steps = Vec::new();
        for index in 0..self.packets.len() {
            if let Some((what, seen, state)) = self.packet_step(index, scenario) {
                let whose = if self.packets[index].inbound {
                    "in "
                } else {
                    "out "
                };
                steps.push((Step { whose, what }, seen, state));
            }
        }
        if let Some((what, state)) = self.call_step(scenario) {
            steps.push((Step { whose: "", what }, Seen::Nothing, state));
        }
        let end = scenario.rest + 1 + scenario.time;
        let all_may_wait = self
            .packets
            .iter()
            .all(|packet| !packet.stage.waits() || packet.waited < scenario.patience);
        if self.now < end && all_may_wait {
            let mut state = self.clone();
            state.now += 1;
            for packet in &mut state.packets {
                packet.waited += u64::from(packet.stage.waits());
            }
            let what = "the clock ticks";
            steps.push((Step { whose: "", what }, Seen::Nothing, state));
        }
        for (_, _, state) in &mut steps {
            state.forget_what_does_not_matter();
        }
        steps
    }

    /// Packets of one direction that are as far are the same.
    fn forget_what_does_not_matter(&mut self) {
        for packet in &mut self.packets {
            packet.awaited &= packet.stage.runs();
            if packet.stage == Stage::Gone {
                packet.waited = 0;
            }
        }
        self.packets.sort();
    }

    fn field(scenario: &Scenario) -> MarkField {
        // Narrower than a configuration may have it, so that epochs come round soon.
        MarkField::trusted((1 << (EPOCH_SHIFT + scenario.epoch_bits)) - 1)
    }

    fn settings(&self, scenario: &Scenario) -> Settings {
        Settings {
            epoch: self.epoch,
            lease: scenario.lease,
            port_min: 0,
            port_max: 0,
            fingerprint: 1,
            learn_from: self.learn_from,
            half_began: self.half_began,
        }
    }

    const fn allows(rules: u8) -> bool {
        rules.is_multiple_of(2)
    }

    fn packet_step(&self, index: usize, scenario: &Scenario) -> Option<(&'static str, Seen, Self)> {
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

    /// A packet that is carried is carried by the rules that the last call has returned with, or by
    /// later ones.
    fn judge_hit(
        &self,
        learned_by: impl Iterator<Item = u8>,
        entered: u64,
        scenario: &Scenario,
    ) -> Seen {
        let oldest = learned_by.min().unwrap_or(u8::MAX);
        if oldest < self.returned {
            return Seen::Broken(format!(
                "carried by rules of version {oldest} after the call for {} has returned",
                self.returned
            ));
        }
        if let Some(since) = self.unnoticed
            && oldest < self.rules
            // Learned at the last moment by a packet that had passed just before.
            && entered >= since + scenario.patience + u64::from(scenario.lease)
        {
            return Seen::Broken(format!(
                "carried {} ticks after an unnoticed change, after the lease",
                entered - since
            ));
        }
        Seen::Hit {
            by_last_rules: oldest == self.rules && self.rules != 0,
        }
    }

    /// What is entered from a packet of older rules must be dead already.
    fn judge_lesson(&self, word: VerdictWord, rules: u8) -> Seen {
        let alive = matches!(
            word.judge(&KEY, self.now, self.epoch),
            Verdict::Fast | Verdict::OneWay
        );
        if alive && rules < self.returned {
            return Seen::Broken(format!(
                "learned by rules of version {rules} after the call for {} has returned",
                self.returned
            ));
        }
        Seen::Nothing
    }

    fn call_step(&self, scenario: &Scenario) -> Option<(&'static str, Self)> {
        let call = *scenario.calls.get(self.call)?;
        let mut state = self.clone();
        let what = match (self.phase, call) {
            (Phase::Begin, Call::Unnoticed) => {
                state.rules += 1;
                state.unnoticed = Some(self.now);
                state.end_call(None);
                "the rules change, and nobody notices"
            }
            (Phase::Begin, Call::Circle) => {
                // Two minutes at least: every packet on its way has arrived.
                if self.packets.iter().any(|packet| packet.stage.waits()) {
                    return None;
                }
                state.epoch = self.epoch.wrapping_add(0xffff);
                if scenario.flaw != Flaw::NoSweep {
                    state.sweep();
                }
                state.end_call(None);
                "65,535 epochs go by"
            }
            (Phase::Begin, Call::Change) if scenario.flaw != Flaw::RaiseBeforeChange => {
                state.rules += 1;
                state.phase = Phase::Raise;
                "the rules change"
            }
            (Phase::Begin | Phase::Raise, _) => return Some(self.begin_epoch(state, scenario)),
            (Phase::Resting, _) if self.is_awaiting() => return None,
            (Phase::Resting, _) => {
                state.epoch = self.epoch.wrapping_add(1);
                state.settle(scenario, call);
                "the next epoch begins"
            }
            (Phase::Settling, _) if self.is_awaiting() => return None,
            (Phase::Settling, _) if scenario.flaw == Flaw::RaiseBeforeChange => {
                state.phase = Phase::Late;
                "the epoch's call returns"
            }
            (Phase::Settling, _) => {
                state.end_call(Some(self.rules));
                "the call returns"
            }
            (Phase::Late, _) => {
                state.rules += 1;
                state.end_call(Some(self.rules + 1));
                "the rules change, and the call returns"
            }
        };
        Some((what, state))
    }

    /// As `Epoch::raise` of `src/datapath/epoch.rs`.
    fn begin_epoch(&self, mut state: Self, scenario: &Scenario) -> (&'static str, Self) {
        let rest = match scenario.flaw {
            Flaw::NoRest => 0,
            _ => scenario.rest,
        };
        let settings = self.settings(scenario);
        let new = settings.raised(self.now, scenario.epoch_bits, rest);
        state.learn_from = new.learn_from;
        state.half_began = new.half_began;
        if new.learn_from > self.now && scenario.flaw != Flaw::RestWithEpoch {
            state.phase = Phase::Resting;
            state.await_programs();
            return ("learning rests", state);
        }
        state.epoch = new.epoch;
        state.settle(scenario, scenario.calls[self.call]);
        ("the next epoch begins", state)
    }

    fn settle(&mut self, scenario: &Scenario, call: Call) {
        match (call, scenario.flaw) {
            (Call::Notified, _) => self.end_call(None),
            (_, Flaw::NoGracePeriod) => self.end_call(Some(self.rules)),
            _ => {
                self.phase = Phase::Settling;
                self.await_programs();
            }
        }
    }

    fn end_call(&mut self, returned: Option<u8>) {
        self.returned = returned.unwrap_or(self.returned);
        self.call += 1;
        self.phase = Phase::Begin;
    }

    fn await_programs(&mut self) {
        for packet in &mut self.packets {
            packet.awaited = packet.stage.runs();
        }
    }

    fn is_awaiting(&self) -> bool {
        self.packets.iter().any(|packet| packet.awaited)
    }

    /// As `Datapath::sweep`.
    fn sweep(&mut self) {
        let epoch = self.epoch;
        // Swept in an epoch between, in which nothing that is there now was learned.
        let between = epoch.wrapping_add(1 << 15);
        self.flow = self
            .flow
            .filter(|(word, _)| u32::from(VerdictWord(*word).epoch()) == between & 0xffff);
        self.host = self
            .host
            .filter(|(word, _)| FlowWord(*word).value(&KEY, between).is_some());
        self.mac = self
            .mac
            .filter(|(word, _)| MacWord(*word).is_current(between));
    }
}
