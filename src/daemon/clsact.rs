//! The clsact qdiscs that filters are on: noted before they are made, removed when nothing is on them.

use tracing::{error, warn};

use super::{DaemonError, fast_path::attach_mode, host::Host};
use crate::{datapath::AttachMode, network::Network};

/// Notes that the underlay's clsact qdisc is going to be ours to remove, where there will be one
/// and is none now. Ahead of its making: a crash in between leaves no qdisc without an owner.
///
/// # Errors
///
/// [`DaemonError`].
pub async fn note(host: &Host, network: &mut Network) -> Result<(), DaemonError> {
    let config = network.config();
    let underlay = config.node.underlay.clone();
    let will_be = config.cache.enabled
        && attach_mode(config.cache.attach) == AttachMode::Clsact
        && !network.record().has_clsact(&underlay);
    if will_be && !host.netlink().has_clsact(&underlay).await? {
        network.record_mut().note_clsact(&underlay);
        network.record().save()?;
    }
    Ok(())
}

/// Removes the clsact qdiscs that were made for filters where links have taken their place, or
/// nothing has: `mode` is how programs are attached now. Those that others use stay.
pub async fn leave(host: &Host, network: &mut Network, mode: Option<AttachMode>) {
    if mode == Some(AttachMode::Clsact) {
        return;
    }
    let with = match host.netlink().with_clsact().await {
        Ok(with) => with,
        Err(reason) => {
            warn!("look for qdiscs that filters were on: {reason}");
            return;
        }
    };
    let devices: Vec<String> = network
        .connected()
        // Most have none, and there may be hundreds of them.
        .filter(|(_, _, device)| with.contains(&device.index))
        .map(|(_, container, _)| container.device.clone())
        .chain(network.record().state().clsact.iter().cloned())
        .collect();
    let mut news = false;
    for device in &devices {
        match host.netlink().delete_clsact(device).await {
            Ok(()) => news |= network.record_mut().forget_clsact(device),
            // In nobody's way; the next start tries again.
            Err(reason) => warn!("remove the qdisc that filters were on: {reason}"),
        }
    }
    if news && let Err(reason) = network.record().save() {
        warn!("{reason}");
    }
}

/// Removes the clsact qdisc that was made for filters on an underlay device that is one no more.
pub async fn leave_underlay(host: &Host, network: &mut Network, device: &str) {
    if !network.record().has_clsact(device) {
        return;
    }
    match host.netlink().delete_clsact(device).await {
        Ok(()) => {
            network.record_mut().forget_clsact(device);
        }
        Err(reason) => error!("leave the underlay device: {reason}"),
    }
}
