//! Two hosts on one wire, and the overlay between them, made by calls of the library: without a daemon.

use std::{future::Future, net::Ipv4Addr, time::Duration};

use ipnet::Ipv4Net;
use oncache::{
    config::{Attach, Cache, Config, Containers, MarkMask, Node, Overlay, Peer},
    netlink::{Netlink, PairEnd, PairKind},
    slow_path::{
        Marks,
        own::{
            reconcile::{ReconcileErrors, reconcile},
            step::Step,
            sysctl::Sysctls,
            wanted::WantedOverlay,
        },
    },
};

use oncache_testbed::Place;

pub const MARKS: Marks = Marks {
    miss: 0x00ff_0000,
    est: 0x0100_0000,
};

pub fn underlay(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 50, host)
}

pub fn subnet(host: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 42, host, 0), 24).expect("a network")
}

/// The configuration of host `host`, whose peer is `peer`.
pub fn config(place: &Place, host: u8, peer: u8) -> Config {
    let index = place.json("ip -j link show eth1")[0]["ifindex"].clone();
    Config {
        node: Node {
            name: format!("host{host}"),
            underlay: "eth1".into(),
            underlay_index: u32::try_from(index.as_u64().expect("an index")).expect("small"),
            underlay_mac: [2, 0, 0, 0, 0, host],
            address: underlay(host),
        },
        overlay: Overlay {
            subnet: subnet(host),
            network: "10.42.0.0/16".parse().expect("a network"),
            vni: 42,
            port: 4789,
            mtu: 1450,
        },
        container: Containers::default(),
        cache: Cache {
            enabled: false,
            flows: 65536,
            lease: Duration::from_secs(30),
            mark_mask: MarkMask::new(0x0fff_0000).expect("the default mask"),
            attach: Attach::Auto,
            ignore_traffic_control: Vec::new(),
        },
        policy: vec![],
        log: oncache::config::Log::default(),
        peers: vec![Peer {
            name: format!("host{peer}"),
            address: underlay(peer),
            subnet: subnet(peer),
            moved: Vec::new(),
        }],
    }
}

/// Runs a future on a runtime whose one thread is in a place.
pub fn block_on<F: Future<Output: Send>>(
    place: &Place,
    work: impl FnOnce() -> F + Send,
) -> F::Output {
    place.enter(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(work())
    })
}

/// Two hosts on one wire.
pub fn hosts() -> [Place; 2] {
    let hosts = [Place::new(), Place::new()];
    block_on(&hosts[0], || async {
        let netlink = Netlink::new().expect("netlink");
        let end = |number| PairEnd {
            name: "eth1",
            mac: [2, 0, 0, 0, 0, number],
            mtu: 1500,
        };
        let made = netlink.create_pair(PairKind::Veth, end(1), "wire", end(2), hosts[1].netns());
        made.await.expect("a wire");
    });
    for (host, number) in hosts.iter().zip([1, 2]) {
        let address = underlay(number);
        host.sh(&format!(
            "ip addr add {address}/24 dev eth1; ip link set eth1 up"
        ));
    }
    hosts
}

pub fn try_apply(host: &Place, wanted: &WantedOverlay) -> Result<Vec<Step>, ReconcileErrors> {
    block_on(host, || async {
        let netlink = Netlink::new().expect("netlink");
        reconcile(&netlink, &Sysctls::default(), wanted).await
    })
}

/// Reconciles; returns the steps as text.
pub fn apply(host: &Place, wanted: &WantedOverlay) -> Vec<String> {
    let steps = try_apply(host, wanted).expect("reconciled");
    let text = steps
        .iter()
        .map(|step| step.named(&wanted.names).to_string());
    text.collect()
}
