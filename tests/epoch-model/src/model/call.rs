//! A call's next step: what the daemon, or somebody behind its back, does.

use oncache_abi::{container::MacWord, entry::FlowWord, flow::VerdictWord};

use super::{KEY, State};
use crate::scenario::{Call, Flaw, Scenario};

/// A call's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
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

impl State {
    pub(super) fn call_step(&self, scenario: &Scenario) -> Option<(&'static str, Self)> {
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
