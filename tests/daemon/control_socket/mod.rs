//! The control socket under callers that are many, broken, slow or not entitled.

mod crowd;
mod malformed;
mod rights;
mod slow;
mod wire;
