//! One packet, one program, and what must come of it.

use std::collections::HashMap;

use oncache::datapath::{PacketContext, clock};
use oncache_abi::{
    mark::{EGRESS_MISS, INGRESS_MISS},
    reason::{Program, Reason},
};

use super::program_bench::{
    Bench, Frame, Maps, REDIRECT, UNSPEC, hex, on_a_bench,
    world::{self, EPOCH, FOREIGN_MARK},
};

/// The bytes that must come out.
enum Output {
    Unchanged,
    Exactly(Frame),
    /// The frame in the packet that carries it to the peer.
    OnTheWire,
}

/// See the module.
pub struct Case {
    name: String,
    pub program: Program,
    frame: Frame,
    context: PacketContext,
    given: Maps,
    /// None: the program counts nothing.
    pub reason: Option<Reason>,
    /// Whether the packet must be marked as missed.
    pub missed: bool,
    output: Output,
    mark: u32,
    then: Maps,
}

impl Case {
    /// A packet on its program's own device while everything is cached. Before the caching programs
    /// its mark is noise, before the learning ones it is that of an established flow's packet.
    pub fn new(program: Program, name: impl Into<String>, frame: Frame) -> Self {
        let (ifindex, mark) = match program {
            Program::Egress => (world::DEVICE, FOREIGN_MARK | world::MASK),
            Program::Ingress => (world::UNDERLAY, FOREIGN_MARK | world::MASK),
            Program::EgressInit => (world::UNDERLAY, world::established(EGRESS_MISS)),
            Program::IngressInit => (world::DEVICE, world::established(INGRESS_MISS)),
        };
        let given = world::warm();
        Self {
            name: name.into(),
            program,
            frame,
            context: PacketContext {
                mark,
                ifindex,
                gso_size: 0,
            },
            then: given.clone(),
            given,
            reason: None,
            missed: false,
            output: Output::Unchanged,
            mark: FOREIGN_MARK,
        }
    }

    /// With other contents of the caches, which the program must leave as they are.
    pub fn given(mut self, edit: impl FnOnce(&mut Maps)) -> Self {
        self.given = self.given.but(edit);
        self.then = self.given.clone();
        self
    }

    /// With other contents of the caches afterwards.
    pub fn then(mut self, edit: impl FnOnce(&mut Maps)) -> Self {
        self.then = self.then.but(edit);
        self
    }

    /// On another device.
    pub fn on(mut self, ifindex: u32) -> Self {
        self.context.ifindex = ifindex;
        self
    }

    /// As an aggregate of segments.
    pub fn aggregate(mut self, segment: u32) -> Self {
        self.context.gso_size = segment;
        self
    }

    /// With another mark.
    pub fn marked(mut self, mark: u32) -> Self {
        self.context.mark = mark;
        self
    }

    /// It takes the slow path as it is, with nothing to be learned from it.
    pub fn refused(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// It takes the slow path as it is, and may be learned from there.
    pub fn misses(mut self, reason: Reason) -> Self {
        let miss = match self.program {
            Program::Egress => EGRESS_MISS,
            Program::Ingress => INGRESS_MISS,
            other => panic!("{} marks nothing", other.name()),
        };
        self.missed = true;
        self.mark = world::missed(miss, EPOCH);
        self.refused(reason)
    }

    /// It goes to the wire by the fast path.
    pub fn hits_the_wire(mut self) -> Self {
        self.reason = Some(Reason::Hit);
        self.output = Output::OnTheWire;
        self
    }

    /// It goes to the container by the fast path, as the slow path would have delivered it.
    pub fn hits_the_container(mut self) -> Self {
        self.reason = Some(Reason::Hit);
        self.output = Output::Exactly(world::at_the_container(&self.frame));
        self.mark = 0;
        self
    }

    /// It is passed over: nothing is counted, the mark stays.
    pub fn ignored(mut self) -> Self {
        self.mark = self.context.mark;
        self
    }

    fn action(&self) -> i32 {
        match self.output {
            Output::Unchanged => UNSPEC,
            _ => REDIRECT,
        }
    }

    fn check(&self, bench: &mut Bench) -> Vec<String> {
        bench.set(&self.given);
        let counts = bench.counts();
        let start = clock::now();
        let outcome = bench.run(self.program, &self.frame.0, self.context);
        let end = clock::now();
        let mut wrong = Vec::new();
        let mut compare = |what: &str, is: String, should: String| {
            if is != should {
                wrong.push(format!(
                    "{} {}: {what}\n   is {is}\n  not {should}",
                    self.program.name(),
                    self.name
                ));
            }
        };

        let name = |action| match action {
            UNSPEC => "unspec".to_owned(),
            REDIRECT => "redirect".to_owned(),
            other => other.to_string(),
        };
        compare("action", name(outcome.action), name(self.action()));
        let counted = since(&counts, bench.counts());
        let should = self
            .reason
            .iter()
            .map(|r| ((self.program.name(), r.name()), 1));
        let should = since(&HashMap::new(), should.collect());
        compare("count", counted, should);
        compare(
            "mark",
            format!("{:#010x}", outcome.mark),
            format!("{:#010x}", self.mark),
        );
        let packet = match &self.output {
            Output::Unchanged => self.frame.clone(),
            Output::Exactly(frame) => frame.clone(),
            Output::OnTheWire => {
                let port = u16::from_be_bytes([outcome.packet[34], outcome.packet[35]]);
                // The kernel's test packets have no hash, as those of unconnected sockets.
                compare(
                    "outer source port",
                    port.to_string(),
                    world::SOURCE_PORT.to_string(),
                );
                world::on_the_wire(&self.frame, &outcome.packet)
            }
        };
        compare("packet", hex(&outcome.packet), hex(&packet.0));

        // The coarse clock of the programs is up to one timer interrupt behind ours.
        let lease = u64::from(clock::to_ticks(world::LEASE));
        let ends = start.saturating_sub(4) + lease..=end + lease;
        let is = bench.maps().with_leases(&ends, world::FRESH);
        compare("cached", is.beyond(&self.then), self.then.beyond(&is));
        wrong
    }
}

fn since(
    before: &HashMap<(&'static str, &'static str), u64>,
    now: HashMap<(&'static str, &'static str), u64>,
) -> String {
    let mut grown: Vec<String> = now
        .into_iter()
        .map(|(key, packets)| (key, packets - before.get(&key).copied().unwrap_or(0)))
        .filter(|(_, packets)| *packets != 0)
        .map(|((program, reason), packets)| format!("{program}/{reason} {packets}"))
        .collect();
    grown.sort();
    grown.join(", ")
}

/// Runs a table of cases on one bench; fails with all that went wrong.
pub fn check(cases: &[Case]) {
    let wrong: Vec<String> =
        on_a_bench(|bench| cases.iter().flat_map(|case| case.check(bench)).collect());
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!("{} cases", cases.len());
}
