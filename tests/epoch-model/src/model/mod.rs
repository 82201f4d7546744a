//! One host, one flow, its packets in both directions, the rules, the daemon and the clock.
//!
//! What the eBPF programs decide is decided by their own functions; what is modelled is where the
//! steps of programs, daemon and slow path may fall between each other. Beside every word the model
//! keeps by which rules it was learned, which nobody decides by and every promise is about.

mod call;
mod packet;
mod promises;

use oncache_abi::{
    flow::FlowKey,
    mark::{EPOCH_SHIFT, MarkField},
    settings::Settings,
};

use self::{
    call::Phase,
    packet::{Packet, Stage},
};
use crate::scenario::Scenario;

const KEY: FlowKey = FlowKey {
    local: 0x0201_2a0a,
    remote: 0x0302_2a0a,
    local_port: 0x5000,
    remote_port: 0x9c40,
    protocol: 17,
    reserved: [0; 3],
};

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
}
