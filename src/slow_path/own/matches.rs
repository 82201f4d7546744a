//! What rules ask of a packet to know whether it is the overlay's.

use super::names::GROUP;
use crate::nft::{Statement, expression::meta, statement::equal};

/// The packet comes by the bridge or out of the tunnel.
#[must_use]
pub fn from_overlay() -> Statement {
    equal(meta("iifgroup"), GROUP)
}

/// The packet goes to the bridge or into the tunnel.
#[must_use]
pub fn to_overlay() -> Statement {
    equal(meta("oifgroup"), GROUP)
}
