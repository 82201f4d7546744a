//! A model checker of learning and invalidation: [`explore()`] tries every schedule of a
//! [`Scenario`], and the tests say which promises no schedule may break.

mod explore;
mod model;
mod scenario;

pub use explore::{Outcome, explore};
pub use scenario::{Call, Flaw, Scenario};
