//! Every schedule, breadth first.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
};

use crate::{
    model::{Seen, State, Step},
    scenario::Scenario,
};

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Different states.
    pub states: usize,
    /// Steps from one to another.
    pub steps: usize,
    /// Different orders of all steps from the beginning to an end, packets of one direction taken
    /// for the same.
    pub schedules: u128,
    /// States in which a packet is carried by the fast path.
    pub hits: usize,
    /// Those after the last change's call has returned.
    pub hits_after_change: usize,
    /// The promise that was broken first, and the steps that lead there.
    pub broken: Option<(String, Vec<String>)>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} states, {} steps, ", self.states, self.steps)?;
        if let Some((broken, schedule)) = &self.broken {
            return write!(f, "broken: {broken}, by: {}", schedule.join("; "));
        }
        write!(
            f,
            "{} schedules; {} hits, {} of them by the last rules",
            self.schedules, self.hits, self.hits_after_change
        )
    }
}

/// Quick, and good enough for states that nobody chooses to collide.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}

struct Node {
    state: State,
    /// Whence it was reached first, and by which step.
    parent: u32,
    step: Option<Step>,
    next: Vec<u32>,
}

/// Tries every schedule of `scenario`, until one breaks a promise.
pub fn explore(scenario: &Scenario) -> Outcome {
    let beginning = State::new(scenario);
    let mut known: HashMap<_, _, BuildHasherDefault<Mixer>> = HashMap::default();
    known.insert(beginning.clone(), 0);
    let mut nodes = vec![Node {
        state: beginning,
        parent: 0,
        step: None,
        next: Vec::new(),
    }];
    let mut outcome = Outcome::default();
    let mut at = 0;
    while at < nodes.len() {
        for (step, seen, state) in nodes[at].state.clone().steps(scenario) {
            outcome.steps += 1;
            match seen {
                Seen::Nothing => {}
                Seen::Hit { by_last_rules } => {
                    outcome.hits += 1;
                    outcome.hits_after_change += usize::from(by_last_rules);
                }
                Seen::Broken(promise) => {
                    let mut schedule = way_to(&nodes, at);
                    schedule.push(step.to_string());
                    outcome.states = nodes.len();
                    outcome.broken = Some((promise, schedule));
                    return outcome;
                }
            }
            let next = *known.entry(state.clone()).or_insert_with(|| {
                nodes.push(Node {
                    state,
                    parent: number(at),
                    step: Some(step),
                    next: Vec::new(),
                });
                number(nodes.len() - 1)
            });
            nodes[at].next.push(next);
        }
        at += 1;
    }
    outcome.states = nodes.len();
    outcome.schedules = schedules(&nodes);
    outcome
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("no more states than memory has room for")
}

fn way_to(nodes: &[Node], mut at: usize) -> Vec<String> {
    let mut steps = Vec::new();
    while at != 0 {
        steps.extend(nodes[at].step.map(|step| step.to_string()));
        at = nodes[at].parent as usize;
    }
    steps.reverse();
    steps
}

/// How many ways lead from the first node to one that leads nowhere. No step leads back: every one
/// moves a packet, a call or the clock on.
fn schedules(nodes: &[Node]) -> u128 {
    let mut open = vec![0_usize; nodes.len()];
    for next in nodes.iter().flat_map(|node| &node.next) {
        open[*next as usize] += 1;
    }
    let mut ways = vec![0_u128; nodes.len()];
    ways[0] = 1;
    let (mut ready, mut done, mut all) = (vec![0], 0, 0);
    while let Some(at) = ready.pop() {
        done += 1;
        if nodes[at].next.is_empty() {
            all += ways[at];
        }
        for next in nodes[at].next.iter().map(|next| *next as usize) {
            ways[next] += ways[at];
            open[next] -= 1;
            if open[next] == 0 {
                ready.push(next);
            }
        }
    }
    assert_eq!(done, nodes.len(), "a step leads back");
    all
}
