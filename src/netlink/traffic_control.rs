//! What hangs on devices: qdiscs, filters, XDP programs. Programs of tcx and netkit hooks are eBPF's own, see
//! `datapath::foreign`.

use std::collections::{HashMap, HashSet};

use netlink_sys::protocols::NETLINK_ROUTE;

use super::{NetlinkError, conntrack::attributes, dump::Dumps};

// Message types of include/uapi/linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTCLASS: u16 = 40;
const RTM_GETTCLASS: u16 = 42;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;

/// Length of `struct tcmsg`.
const TC_HEADER: usize = 20;
/// Length of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;

// Attributes of include/uapi/linux/{rtnetlink,pkt_cls,if_link}.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_ACT_KIND: u16 = 1;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_U32_ACT: u16 = 7;
const TCA_U32_INDEV: u16 = 8;
const TCA_U32_MARK: u16 = 10;
const TCA_BPF_ID: u16 = 11;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_XDP: u16 = 43;
const IFLA_MAX_MTU: u16 = 51;
const IFLA_XDP_ATTACHED: u16 = 2;
/// `RTEXT_FILTER_SKIP_STATS`.
const SKIP_STATS: u32 = 1 << 3;

/// Parents of filters at a device's ingress and egress (`TC_H_MIN_INGRESS`, `TC_H_MIN_EGRESS` of clsact).
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `TC_H_ROOT`.
const ROOT: u32 = 0xffff_ffff;

/// The largest MTU of an Ethernet device without limits of its own (`ETH_MAX_MTU`).
const ETH_MAX_MTU: u32 = 65_535;

/// Qdiscs that take no filters: what would be asked of them for nothing, and `mq` may have many of.
const WITHOUT_FILTERS: [&str; 8] = [
    "noqueue",
    "mq",
    "mqprio",
    "pfifo_fast",
    "pfifo",
    "bfifo",
    "fq",
    "tbf",
];

/// Where a filter or program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// What the device has received.
    Ingress,
    /// What it is to send.
    Egress,
    /// Within the qdisc that sends.
    Queue,
}

/// A qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// Such as `tbf`.
    pub kind: String,
    /// Its major number in the high half.
    pub handle: u32,
    /// Whether it is the device's root.
    pub root: bool,
}

impl Qdisc {
    /// Whether it is only where filters hang.
    #[must_use]
    pub fn is_hook(&self) -> bool {
        ["clsact", "ingress"].contains(&&*self.kind)
    }
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Such as `u32`.
    pub kind: String,
    /// Where it runs.
    pub hook: Hook,
    /// Its priority.
    pub priority: u16,
    /// The eBPF program's id, of kind `bpf`.
    pub program: Option<u32>,
    /// Whether it looks at nothing but the packet's bytes and rewrites none of them: `matchall` and
    /// `u32`, with actions that pass, drop, police, mirror or redirect.
    pub plain: bool,
}

/// All that hangs on one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnDevice {
    /// Its qdiscs, children included.
    pub qdiscs: Vec<Qdisc>,
    /// Its filters.
    pub filters: Vec<Filter>,
    /// It has an XDP program.
    pub xdp: bool,
    /// The other end of its pair has one that runs in the driver, where a packet that is handed over
    /// within the kernel does not pass. It shows in the largest MTU (drivers/net/veth.c,
    /// `veth_xdp_set`), which else is an Ethernet device's.
    pub xdp_at_other_end: bool,
}

/// What hangs on each of `devices`, by interface index. `with_queues` is the device whose qdiscs' own filters
/// are read as well.
///
/// # Errors
/// [`NetlinkError`].
pub fn on_devices(
    devices: &HashSet<u32>,
    with_queues: u32,
) -> Result<HashMap<u32, OnDevice>, NetlinkError> {
    let Some(mut dumps) = Dumps::open(NETLINK_ROUTE)? else {
        return Ok(HashMap::new());
    };
    let mut found: HashMap<u32, OnDevice> = HashMap::new();
    let links = dumps.list("list XDP programs", RTM_GETLINK, &all_links(), link)?;
    for (device, xdp, max_mtu) in links {
        if devices.contains(&device) {
            let on = found.entry(device).or_default();
            on.xdp = xdp;
            on.xdp_at_other_end = max_mtu.is_some_and(|mtu| mtu != ETH_MAX_MTU);
        }
    }
    // Of all devices at once (net/sched/sch_api.c, `tc_dump_qdisc`).
    let qdiscs = dumps.list("list qdiscs", RTM_GETQDISC, &tc_message(0, 0), qdisc)?;
    for (device, qdisc) in qdiscs {
        if devices.contains(&device) {
            found.entry(device).or_default().qdiscs.push(qdisc);
        }
    }
    for (device, on) in &mut found {
        let mut parents = Vec::new();
        if on.qdiscs.iter().any(Qdisc::is_hook) {
            parents.extend([(INGRESS, Hook::Ingress), (EGRESS, Hook::Egress)]);
        }
        if *device == with_queues {
            let queues = on.qdiscs.iter().filter(|it| {
                !it.is_hook() && it.handle != 0 && !WITHOUT_FILTERS.contains(&&*it.kind)
            });
            let mut queues: Vec<u32> = queues.map(|it| it.handle).collect();
            if !queues.is_empty() {
                let of = tc_message(*device, 0);
                queues.extend(dumps.list("list classes", RTM_GETTCLASS, &of, class)?);
            }
            parents.extend(queues.into_iter().map(|parent| (parent, Hook::Queue)));
        }
        for (parent, hook) in parents {
            let of = tc_message(*device, parent);
            let parse = |kind, body: &[u8]| filter(kind, body, hook);
            let filters = dumps.list("list filters", RTM_GETTFILTER, &of, parse)?;
            on.filters.extend(filters);
        }
    }
    Ok(found)
}

/// `struct tcmsg`.
fn tc_message(device: u32, parent: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(device.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(parent.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes
}

fn all_links() -> Vec<u8> {
    let mut bytes = vec![0; LINK_HEADER];
    bytes.extend(8_u16.to_ne_bytes());
    bytes.extend(IFLA_EXT_MASK.to_ne_bytes());
    bytes.extend(SKIP_STATS.to_ne_bytes());
    bytes
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn text(value: &[u8]) -> String {
    let ended = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(ended).into_owned()
}

/// Index, whether it has an XDP program, and its largest MTU.
fn link(kind: u16, body: &[u8]) -> Option<(u32, bool, Option<u32>)> {
    if kind != RTM_NEWLINK {
        return None;
    }
    let (mut xdp, mut max_mtu) = (false, None);
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            IFLA_XDP => {
                let attached = attributes(value).find(|(kind, _)| *kind == IFLA_XDP_ATTACHED);
                xdp = attached.is_some_and(|(_, mode)| mode.first() != Some(&0));
            }
            IFLA_MAX_MTU => max_mtu = word(value, 0),
            _ => {}
        }
    }
    Some((word(body, 4)?, xdp, max_mtu))
}

fn kind_of(body: &[u8]) -> Option<String> {
    let mut all = attributes(body.get(TC_HEADER..)?);
    all.find(|(kind, _)| *kind == TCA_KIND)
        .map(|(_, name)| text(name))
}

fn qdisc(kind: u16, body: &[u8]) -> Option<(u32, Qdisc)> {
    if kind != RTM_NEWQDISC {
        return None;
    }
    let qdisc = Qdisc {
        kind: kind_of(body).unwrap_or_else(|| "unknown".to_owned()),
        handle: word(body, 8)?,
        root: word(body, 12)? == ROOT,
    };
    Some((word(body, 4)?, qdisc))
}

fn class(kind: u16, body: &[u8]) -> Option<u32> {
    (kind == RTM_NEWTCLASS).then(|| word(body, 8)).flatten()
}

fn filter(kind: u16, body: &[u8], hook: Hook) -> Option<Filter> {
    if kind != RTM_NEWTFILTER {
        return None;
    }
    let options = || {
        let all = attributes(body.get(TC_HEADER..).unwrap_or_default());
        all.filter(|(kind, _)| *kind == TCA_OPTIONS)
            .flat_map(|(_, options)| attributes(options))
    };
    let kind = kind_of(body).unwrap_or_else(|| "unknown".to_owned());
    // A dump begins with the classifier itself (net/sched/cls_api.c, `tcf_chain_dump`), which without a filter
    // does nothing; of other kinds that is not sure.
    if kind == "bpf" && word(body, 8)? == 0 {
        return None;
    }
    let program = options().find(|(kind, _)| *kind == TCA_BPF_ID);
    let program = program.filter(|_| kind == "bpf");
    let priority = word(body, 16)? >> 16;
    Some(Filter {
        hook,
        priority: u16::try_from(priority).unwrap_or(0),
        program: program.and_then(|(_, id)| word(id, 0)),
        plain: match &*kind {
            "matchall" => are_plain(options(), TCA_MATCHALL_ACT),
            "u32" => {
                let mut all = options();
                all.all(|(kind, _)| ![TCA_U32_INDEV, TCA_U32_MARK].contains(&kind))
                    && are_plain(options(), TCA_U32_ACT)
            }
            _ => false,
        },
        kind,
    })
}

/// Whether all actions of a filter are such as rewrite nothing. `number` is that of the attribute with them.
fn are_plain<'a>(mut options: impl Iterator<Item = (u16, &'a [u8])>, number: u16) -> bool {
    const PLAIN: [&str; 3] = ["gact", "mirred", "police"];
    options.all(|(kind, actions)| {
        kind != number
            || attributes(actions).all(|(_, action)| {
                let mut named = attributes(action).filter(|(kind, _)| *kind == TCA_ACT_KIND);
                named
                    .next()
                    .is_some_and(|(_, name)| PLAIN.contains(&&*text(name)))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::conntrack::attribute_of;

    fn filter_of(kind: &str, options: &[u8]) -> Filter {
        let mut body = tc_message(7, INGRESS);
        body[8] = 1;
        body[16..20].copy_from_slice(&0x0005_0300_u32.to_ne_bytes());
        body.extend(attribute_of(TCA_KIND, format!("{kind}\0").as_bytes()));
        body.extend(attribute_of(TCA_OPTIONS, options));
        filter(RTM_NEWTFILTER, &body, Hook::Ingress).expect("a filter")
    }

    fn acting(number: u16, name: &str) -> Vec<u8> {
        let named = attribute_of(TCA_ACT_KIND, format!("{name}\0").as_bytes());
        attribute_of(number, &attribute_of(1, &named))
    }

    #[test]
    fn a_filter_is_plain_if_it_only_reads_bytes_and_rewrites_none() {
        for (kind, options, plain) in [
            ("matchall", acting(TCA_MATCHALL_ACT, "gact"), true),
            ("matchall", acting(TCA_MATCHALL_ACT, "pedit"), false),
            ("matchall", Vec::new(), true),
            ("u32", acting(TCA_U32_ACT, "mirred"), true),
            ("u32", acting(TCA_U32_ACT, "skbedit"), false),
            ("u32", attribute_of(TCA_U32_MARK, &[0; 12]), false),
            ("u32", attribute_of(TCA_U32_INDEV, b"eth0\0"), false),
            ("flower", Vec::new(), false),
            ("bpf", attribute_of(TCA_BPF_ID, &[9, 0, 0, 0]), false),
        ] {
            let found = filter_of(kind, &options);
            assert_eq!(found.plain, plain, "{kind} {options:?}");
            assert_eq!((&*found.kind, found.priority), (kind, 5));
            assert_eq!(found.program.is_some(), kind == "bpf");
        }
    }

    #[test]
    fn what_is_cut_short_is_no_panic() {
        let mut body = tc_message(7, ROOT);
        body.extend(attribute_of(TCA_KIND, b"tbf\0"));
        let (device, whole) = qdisc(RTM_NEWQDISC, &body).expect("a qdisc");
        assert_eq!((device, &*whole.kind, whole.root), (7, "tbf", true));
        for length in 0..body.len() {
            let _ = qdisc(RTM_NEWQDISC, &body[..length]);
            let _ = filter(RTM_NEWTFILTER, &body[..length], Hook::Egress);
            let _ = link(RTM_NEWLINK, &body[..length]);
        }
    }
}
