//! What becomes of packets for addresses of the overlay's network that nobody has a route to: they are
//! refused here, where the sender hears of it, instead of leaving bare by the default route.

use ipnet::Ipv4Net;
use nix::errno::Errno;

use super::reconcile::absent_is_done;
use crate::{
    config::Overlay,
    netlink::{MAIN_TABLE, Netlink, NetlinkError, ROUTE_PROTOCOL, RouteFilter},
};

/// What came of [`keep`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// What was changed, one line each.
    pub done: Vec<String>,
    /// Somebody else's route that is there instead, in a line for the operator.
    pub taken: Option<String>,
}

/// The network that is to have such a route; none where it is no larger than this host's subnet, whose
/// own route leads to the bridge.
#[must_use]
pub fn wanted(overlay: &Overlay) -> Option<Ipv4Net> {
    let network = overlay.network.trunc();
    (network != overlay.subnet.trunc()).then_some(network)
}

/// Makes the network unreachable but for more specific routes, and removes such routes to any other one.
///
/// # Errors
/// [`NetlinkError`] naming the route.
pub async fn keep(netlink: &Netlink, network: Option<Ipv4Net>) -> Result<Kept, NetlinkError> {
    let mut kept = Kept::default();
    let present = netlink.unreachable_routes(ROUTE_PROTOCOL).await?;
    for stray in present.iter().filter(|it| Some(**it) != network) {
        absent_is_done(netlink.delete_unreachable(*stray, ROUTE_PROTOCOL).await)?;
        kept.done.push(format!("delete route unreachable {stray}"));
    }
    let Some(network) = network.filter(|network| !present.contains(network)) else {
        return Ok(kept);
    };
    match netlink.add_unreachable(network, ROUTE_PROTOCOL).await {
        Ok(()) => kept.done.push(format!("add route unreachable {network}")),
        // Its owner knows why; and what it takes over is only what no container has.
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            kept.taken = Some(taken(netlink, network).await?);
        }
        Err(error) => return Err(error),
    }
    Ok(kept)
}

/// Removes the routes that [`keep`] made.
///
/// # Errors
/// [`NetlinkError`] naming the route.
pub async fn remove(netlink: &Netlink) -> Result<(), NetlinkError> {
    keep(netlink, None).await.map(|_| ())
}

async fn taken(netlink: &Netlink, network: Ipv4Net) -> Result<String, NetlinkError> {
    let routes = netlink.routes(RouteFilter::MainTable).await?;
    let holder = routes.iter().find(|route| {
        route.destination == network && route.metric == 0 && route.table == MAIN_TABLE
    });
    let holder = match holder {
        Some(route) => {
            let device = netlink.label(route.device).await;
            format!("{route} dev {device} proto {}", route.protocol)
        }
        // Of several next hops, or of another kind.
        None => format!("{network}"),
    };
    Ok(format!(
        "overlay.network {network} has a route that is not oncache's ({holder}): by it packets for addresses that no container has leave this host bare; remove it (`ip route del {network}`), or give it a metric"
    ))
}
