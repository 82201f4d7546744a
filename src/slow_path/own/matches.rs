//! What rules ask of a packet to know whether it is the overlay's.

use super::names::GROUP;
use crate::nft::{Statement, expression::meta, statement::equal};

/// The packet comes by the bridge or out of the tunnel.
pub(super) fn from_overlay() -> Statement {
    equal(meta("iifgroup"), GROUP)
}

/// The packet goes to the bridge or into the tunnel.
pub(super) fn to_overlay() -> Statement {
    equal(meta("oifgroup"), GROUP)
}
