//! Changes in a network namespace are told, losses too; and what the configuration asks about the
//! host is answered. Takes root.

use std::{path::Path, time::Duration};

use oncache::netlink::{Event, Netlink, NetlinkError, PairEnd, PairKind, Watch, host_facts};
use oncache_testbed::Place;
use tokio::time::timeout;

/// Runs a future on a runtime whose one thread is in a place.
fn block_on<F: Future<Output: Send>>(place: &Place, work: impl FnOnce() -> F + Send) -> F::Output {
    place.enter(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(work())
    })
}

/// Waits for an event that passes; fails if none comes.
async fn wait_for(watch: &mut Watch, passes: impl Fn(&Event) -> bool) -> Event {
    let wait = async {
        loop {
            let event = watch.next().await.expect("an event");
            if passes(&event) {
                return event;
            }
        }
    };
    timeout(Duration::from_secs(5), wait)
        .await
        .expect("an event in time")
}

fn sh(script: &str) {
    let status = std::process::Command::new("sh")
        .args(["-ec", script])
        .status();
    assert!(status.expect("sh").success(), "{script}");
}

#[test]
fn every_kind_of_change_is_told_with_its_device() {
    block_on(&Place::new(), || async {
        let netlink = Netlink::new().expect("netlink");
        sh("ip link add va type veth peer name vb; ip link set vb up; ip link set va up");
        let device = netlink.index_of("va").await.expect("an index");
        let mut watch = Watch::new().expect("a watch");

        let mut told = async |script: &str, is_told: &dyn Fn(&Event) -> bool| {
            sh(script);
            wait_for(&mut watch, is_told).await;
        };
        told("ip link set va mtu 1400", &|event| {
            matches!(event, Event::Link { device: of, state: Some(state) }
                if *of == device && state.mtu == 1400 && state.up)
        })
        .await;
        let address = Event::Address { device };
        told("ip addr add 10.0.0.1/24 dev va", &|event| *event == address).await;
        let route = |text: &str| Event::Route {
            destination: text.parse().expect("a network"),
        };
        let gateway = "ip route add 10.9.0.0/24 via 10.0.0.2";
        told(gateway, &|event| *event == route("10.9.0.0/24")).await;
        let neighbour = Event::Neighbour {
            device,
            address: [10, 0, 0, 2].into(),
            mac: Some([2, 0, 0, 0, 0, 2]),
        };
        let there = "ip neigh add 10.0.0.2 dev va lladdr 02:00:00:00:00:02";
        told(there, &|event| *event == neighbour).await;
        told("nft add table inet other", &|event| {
            *event == Event::Ruleset
        })
        .await;
        told("nft delete table inet other", &|event| {
            *event == Event::Ruleset
        })
        .await;
        let blackhole = "ip route add blackhole 10.8.0.0/24";
        told(blackhole, &|event| *event == route("10.8.0.0/24")).await;
        told("ip rule add from 10.7.0.0/16 table 7", &|event| {
            *event == Event::RoutingRule
        })
        .await;
        told("ip nexthop add id 5 via 10.0.0.2 dev va", &|event| {
            *event == Event::NextHop
        })
        .await;
        let one = Event::Forwarding {
            device: Some(device),
        };
        told("sysctl -qw net.ipv4.conf.va.forwarding=1", &|event| {
            *event == one
        })
        .await;
        let all = Event::Forwarding { device: None };
        told("sysctl -qw net.ipv4.ip_forward=1", &|event| *event == all).await;
        sh("ip link add vx type vxlan id 42 dstport 4789");
        let vxlan = netlink.index_of("vx").await.expect("an index");
        let entry = Event::ForwardingEntry { device: vxlan };
        let fdb = "bridge fdb add 02:00:00:00:00:03 dev vx dst 10.0.0.3";
        told(fdb, &|event| *event == entry).await;
        let gone = Event::LinkGone { device };
        told("ip link del va", &|event| *event == gone).await;
    });
}

#[test]
fn what_is_there_is_handed_over_at_once() {
    block_on(&Place::new(), || async {
        let mut watch = Watch::new().expect("a watch");
        sh("nft add table inet other; ip rule add from 10.7.0.0/16 table 7");
        let batch = timeout(Duration::from_secs(5), watch.next_batch()).await;
        let mut batch = batch.expect("in time").expect("events");
        batch.sort_by_key(|event| format!("{event:?}"));
        assert_eq!(batch, [Event::RoutingRule, Event::Ruleset]);
        let more = timeout(Duration::from_millis(100), watch.next_batch()).await;
        assert!(more.is_err(), "{more:?}");
    });
}

#[test]
fn lost_events_are_told_and_the_watch_goes_on() {
    block_on(&Place::new(), || async {
        let mut watch = Watch::new().expect("a watch");
        watch.set_receive_buffer(1).expect("the smallest buffer");
        sh(
            "ip link add va type veth peer name vb; for i in $(seq 40); do ip link set va mtu $((1000 + i)); done",
        );
        wait_for(&mut watch, |event| *event == Event::Overrun).await;
        // What is still queued has to go first.
        while timeout(Duration::from_millis(100), watch.next())
            .await
            .is_ok()
        {}
        sh("nft add table inet other");
        wait_for(&mut watch, |event| *event == Event::Ruleset).await;
    });
}

#[test]
fn other_namespaces_are_not_heard() {
    let (here, there) = (Place::new(), Place::new());
    block_on(&here, || async {
        let mut watch = Watch::new().expect("a watch");
        there.sh("nft add table inet other; ip link add va type veth peer name vb");
        let heard = timeout(Duration::from_millis(200), watch.next()).await;
        assert!(heard.is_err(), "{heard:?}");
    });
}

#[test]
fn facts_name_the_default_routes_device_and_every_address() {
    let namespace = Place::new();
    namespace.sh(
        "ip link add eth0 mtu 1400 address 02:00:00:00:00:01 type veth peer name vb
         ip link add eth1 type veth peer name vc; ip link set vc up; ip link set eth1 up
         ip link set vb up; ip link set eth0 up
         ip addr add 10.0.0.1/24 dev eth0; ip addr add 10.0.0.2/24 dev eth0
         ip addr add 10.1.0.1/24 dev eth1
         ip route add default via 10.1.0.9 metric 50; ip route add default via 10.0.0.9 metric 7
         ip route add default via 10.1.0.8 table 99",
    );
    block_on(&namespace, || async {
        let facts = host_facts(&Netlink::new().expect("netlink"), None)
            .await
            .expect("facts");
        assert_eq!(facts.default_route_device.as_deref(), Some("eth0"));
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
        assert_eq!(facts.hostname, hostname.trim());
        let find = |name: &str| facts.devices.iter().find(|device| device.name == name);
        let eth0 = find("eth0").expect("eth0");
        assert_eq!((eth0.mtu, eth0.mac), (1400, [2, 0, 0, 0, 0, 1]));
        let addresses: Vec<String> = eth0.ipv4.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.1/24", "10.0.0.2/24"]);
        assert_eq!(find("lo").expect("lo").ipv4[0].to_string(), "127.0.0.1/8");
    });
}

#[test]
fn errors_name_operation_object_and_the_kernels_reason() {
    let namespace = Place::new();
    block_on(&namespace, || async {
        let netlink = Netlink::new().expect("netlink");
        sh("ip link add va type veth peer name vb; ip link set va up");
        let device = netlink.index_of("va").await.expect("an index");
        let address = "10.0.0.1/24".parse().expect("an address");
        let error = netlink
            .delete_address(device, address)
            .await
            .expect_err("absent");
        assert!(error.is_absent(), "{error}");
        assert_eq!(
            error.to_string(),
            "delete address 10.0.0.1/24 dev va: Cannot assign requested address (99): \
             ipv4: Address not found"
        );
        let error = netlink
            .set_mtu(device, 1 << 20)
            .await
            .expect_err("too much");
        assert_eq!(
            error.to_string(),
            "set mtu 1048576 dev va: Invalid argument (22): mtu greater than device maximum"
        );
        let error = netlink.delete_link(4711).await.expect_err("absent");
        assert!(
            error.is_absent() && error.to_string().starts_with("delete dev #4711: "),
            "{error}"
        );
        let error = netlink.index_of("nix").await.expect_err("absent");
        assert!(matches!(error, NetlinkError::NoDevice { .. }), "{error}");
    });
}

#[test]
fn a_pair_that_cannot_be_made_leaves_nothing() {
    let (here, there) = (Place::new(), Place::new());
    there.sh("ip link add eth0 type veth peer name other");
    let before = here.sh("ip link");
    block_on(&here, || async {
        let netlink = Netlink::new().expect("netlink");
        let end = |name| PairEnd {
            name,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1450,
        };
        let made = |alias: String| {
            let netlink = netlink.clone();
            let there = there.netns();
            let inside = if alias.is_empty() { "eth0" } else { "eth1" };
            async move {
                netlink
                    .create_pair(PairKind::Veth, end("c0"), &alias, end(inside), there)
                    .await
            }
        };
        made(String::new())
            .await
            .expect_err("the name is taken inside");
        let error = made("x".repeat(300))
            .await
            .expect_err("the alias is too long");
        assert!(error.to_string().contains("dev c0"), "{error}");
    });
    assert_eq!(here.sh("ip link"), before);
}

#[test]
fn a_namespace_that_is_none_is_refused() {
    block_on(&Place::new(), || async {
        let error = Netlink::in_namespace_at(Path::new("/run/netns/nix")).await;
        let error = error.expect_err("absent").to_string();
        assert!(
            error.starts_with("enter network namespace /run/netns/nix: No such file"),
            "{error}"
        );
        let error = Netlink::in_namespace_at(Path::new("/proc/self/ns/uts")).await;
        assert!(matches!(error, Err(NetlinkError::Namespace { .. })));
    });
}
