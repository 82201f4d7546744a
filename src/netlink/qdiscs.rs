//! The clsact qdisc of a device.

use std::collections::HashSet;

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
        Ok(self.with_clsact().await?.contains(&link.index))
    }

    /// The interface indices of all devices that have a clsact qdisc.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn with_clsact(&self) -> Result<HashSet<u32>, NetlinkError> {
        // The kernel lists those of all devices (net/sched/sch_api.c, `tc_dump_qdisc`).
        let all = RouteNetlinkMessage::GetQueueDiscipline(message(0, TcHandle::default()));
        let found = self.dump("list qdiscs", all, |entry| match entry {
            RouteNetlinkMessage::NewQueueDiscipline(qdisc)
                if qdisc.header.parent == CLSACT_PARENT =>
            {
                u32::try_from(qdisc.header.index).ok()
            }
            _ => None,
        });
        Ok(found.await?.into_iter().collect())
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
            if !self.dump("list filters", filters, Some).await?.is_empty() {
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
