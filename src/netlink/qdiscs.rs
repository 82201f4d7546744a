//! The clsact qdisc of a device.

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle, TcHeader, TcMessage},
};

use nix::errno::Errno;

use super::{Netlink, NetlinkError};

/// `TC_H_CLSACT` (include/uapi/linux/pkt_sched.h): parent of the clsact qdisc.
const CLSACT_PARENT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff1,
};
/// Handle of the clsact qdisc.
const CLSACT_HANDLE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};
/// Where filters hang: ingress (`TC_H_MIN_INGRESS`) and egress (`TC_H_MIN_EGRESS`).
const HOOKS: [TcHandle; 2] = [
    TcHandle {
        major: 0xffff,
        minor: 0xfff2,
    },
    TcHandle {
        major: 0xffff,
        minor: 0xfff3,
    },
];

impl Netlink {
    /// Whether a device has a clsact qdisc. False where there is no such device.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn has_clsact(&self, device: &str) -> Result<bool, NetlinkError> {
        let Some(link) = self.link_by_name(device).await? else {
            return Ok(false);
        };
        let all = RouteNetlinkMessage::GetQueueDiscipline(message(link.index, TcHandle::default()));
        let index = i32::try_from(link.index).unwrap_or_default();
        // The kernel lists those of all devices (net/sched/sch_api.c, `tc_dump_qdisc`).
        Ok(self.dump("list qdiscs", all).await?.iter().any(|entry| {
            matches!(
                entry,
                RouteNetlinkMessage::NewQueueDiscipline(qdisc)
                    if qdisc.header.index == index && qdisc.header.parent == CLSACT_PARENT
            )
        }))
    }

    /// Removes the clsact qdisc of a device, unless somebody has filters on it. No error where the
    /// qdisc or the device is gone.
    ///
    /// # Errors
    /// [`NetlinkError`] naming the device.
    pub async fn delete_clsact(&self, device: &str) -> Result<(), NetlinkError> {
        let Some(link) = self.link_by_name(device).await? else {
            return Ok(());
        };
        for hook in HOOKS {
            let filters = RouteNetlinkMessage::GetTrafficFilter(message(link.index, hook));
            if !self.dump("list filters", filters).await?.is_empty() {
                return Ok(());
            }
        }
        let mut qdisc = message(link.index, CLSACT_PARENT);
        qdisc.header.handle = CLSACT_HANDLE;
        let deletion = RouteNetlinkMessage::DelQueueDiscipline(qdisc);
        match self
            .change_on(link.index, "delete qdisc clsact", deletion, 0)
            .await
        {
            // EINVAL is the kernel's word for a handle that no qdisc has (net/sched/sch_api.c,
            // `tc_get_qdisc`).
            Err(error) if !error.is_absent() && error.errno() != Some(Errno::EINVAL) => Err(error),
            _ => Ok(()),
        }
    }
}

fn message(device: u32, parent: TcHandle) -> TcMessage {
    let index = i32::try_from(device).unwrap_or_default();
    TcMessage::from_parts(
        TcHeader {
            index,
            parent,
            ..TcHeader::default()
        },
        Vec::new(),
    )
}
