//! Every thing that may hang on every device, how it is hung there, and the reference of what it does to flows.

use std::os::fd::OwnedFd;

use oncache_testbed::{
    Host,
    hanging::{TCX_EGRESS, TCX_INGRESS, attach_tcx, bpf_filter, pin_xdp},
};

/// A device that a thing hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Container,
    Bridge,
    Vxlan,
    Underlay,
}

/// What hangs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A clsact qdisc alone.
    Clsact,
    /// A root qdisc of a kind.
    Qdisc(&'static str),
    Xdp {
        drops: bool,
    },
    Tcx {
        egress: bool,
        drops: bool,
    },
    Bpf {
        egress: bool,
        drops: bool,
    },
    Mirror {
        egress: bool,
    },
    /// A chain of nftables' netdev family that drops large packets.
    Chain {
        egress: bool,
    },
}

use Device::{Bridge, Underlay, Vxlan};

impl Device {
    pub const ALL: [Self; 4] = [Self::Container, Bridge, Vxlan, Underlay];

    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "onc-web",
            Bridge => "oncache0",
            Vxlan => "oncache-vx0",
            Underlay => "eth1",
        }
    }
}

/// Every thing, whichever device it is for.
pub fn things() -> Vec<Thing> {
    let mut all = vec![
        Thing::Clsact,
        Thing::Qdisc("tbf rate 1gbit burst 100k limit 1m"),
        Thing::Qdisc("htb default 1"),
        Thing::Xdp { drops: false },
        Thing::Xdp { drops: true },
    ];
    for egress in [false, true] {
        all.push(Thing::Mirror { egress });
        all.push(Thing::Chain { egress });
        for drops in [false, true] {
            all.push(Thing::Tcx { egress, drops });
            all.push(Thing::Bpf { egress, drops });
        }
    }
    all
}

/// The reference: whether flows of the device's container are carried all the same.
pub fn is_carried(device: Device, thing: Thing) -> bool {
    match thing {
        Thing::Clsact => true,
        // What is to be sent by the underlay is queued there, whoever sends it.
        Thing::Qdisc(_) => device == Underlay,
        // Met on the way to `egress` and `ingress`.
        Thing::Xdp { .. } => [Device::Container, Underlay].contains(&device),
        Thing::Tcx { .. } | Thing::Bpf { .. } | Thing::Chain { .. } => false,
        // It only looks at bytes, and those of the fast path are the same.
        Thing::Mirror { egress } => device == Underlay && egress,
    }
}

/// What lets all pass is in the way as what drops is; two devices are enough to see that.
pub fn is_rather_dull(device: Device, thing: Thing) -> bool {
    let passes = matches!(
        thing,
        Thing::Xdp { drops: false }
            | Thing::Tcx { drops: false, .. }
            | Thing::Bpf { drops: false, .. }
    );
    passes && [Bridge, Vxlan].contains(&device)
}

/// The reference: whether large datagrams may still come back.
pub fn is_delivered(thing: Thing) -> bool {
    !matches!(
        thing,
        Thing::Chain { .. }
            | Thing::Xdp { drops: true }
            | Thing::Tcx { drops: true, .. }
            | Thing::Bpf { drops: true, .. }
    )
}

/// What has to be kept while a thing hangs, and how it goes.
pub struct Hung {
    pub link: Option<OwnedFd>,
    pub undo: String,
}

pub fn hang(host: &Host, device: Device, thing: Thing) -> Hung {
    let name = device.name();
    let side = |egress: bool| if egress { "egress" } else { "ingress" };
    let filter = |egress: bool, what: &str| {
        host.sh(&format!(
            "tc qdisc add dev {name} clsact; tc filter add dev {name} {} {what}",
            side(egress)
        ));
        format!("tc qdisc del dev {name} clsact")
    };
    let mut link = None;
    let undo = match thing {
        Thing::Clsact => {
            host.sh(&format!("tc qdisc add dev {name} clsact"));
            format!("tc qdisc del dev {name} clsact")
        }
        Thing::Qdisc(kind) => {
            host.sh(&format!("tc qdisc add dev {name} root {kind}"));
            format!("tc qdisc del dev {name} root")
        }
        Thing::Xdp { drops } => {
            let path = pin_xdp(host, drops);
            // What has been redirected into a veth device passes by generic XDP at its other end
            // (net/core/dev.c, `netif_receive_generic_xdp`): the lab's wire is one, and the sender the fast path.
            let mode = if device == Underlay {
                "xdpdrv"
            } else {
                "xdpgeneric"
            };
            host.sh(&format!("ip link set {name} {mode} pinned {path}"));
            format!("ip link set {name} {mode} off")
        }
        Thing::Tcx { egress, drops } => {
            let hook = if egress { TCX_EGRESS } else { TCX_INGRESS };
            link = Some(attach_tcx(host, name, hook, drops));
            String::new()
        }
        Thing::Bpf { egress, drops } => filter(egress, &bpf_filter(drops)),
        Thing::Chain { egress } => {
            host.sh(&format!(
                "nft 'table netdev foreign {{
                     chain c {{
                         type filter hook {} device {name} priority 0;
                         meta length > 500 drop
                     }}
                 }}'",
                side(egress)
            ));
            "nft delete table netdev foreign".to_owned()
        }
        Thing::Mirror { egress } => filter(
            egress,
            "protocol ip u32 match u32 0 0 action mirred egress mirror dev tap0",
        ),
    };
    Hung { link, undo }
}
