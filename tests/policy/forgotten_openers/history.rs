//! What happens to a flow, and the reference of who may be heard then.

/// What may happen to a flow, and what is asked of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    Say(usize),
    Flush(usize),
    Delete,
    Deny,
    AllowOnly,
    Clear,
}

/// The reference: who may be heard.
#[derive(Debug)]
pub struct Known {
    /// The opener is known, so that a rule that allows what the client opens lets it go on.
    pub opener: bool,
    pub rules: Step,
}

impl Known {
    pub fn after(&mut self, step: Step, protocol: &str) {
        match step {
            Step::Say(_) | Step::Flush(1) => {}
            // The sets remember UDP's.
            Step::Flush(_) | Step::Delete => self.opener &= protocol == "udp",
            Step::Deny | Step::AllowOnly | Step::Clear => self.rules = step,
        }
    }

    pub fn passes(&self) -> bool {
        match self.rules {
            Step::Deny => false,
            Step::AllowOnly => self.opener,
            _ => true,
        }
    }
}
