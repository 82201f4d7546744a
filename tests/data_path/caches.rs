//! What the daemon lists of the caches, and what it clears away when a peer goes.

use std::collections::HashSet;

use oncache_abi::flow::FlowKey;

use crate::program_bench::{Maps, key, on_a_bench, peer, world};

/// A flow like the others, from another port.
fn another(port: u16) -> FlowKey {
    FlowKey {
        local_port: port.to_be(),
        ..world::flow(17)
    }
}

/// Two flows to the peer, one to the other peer, and one of which only the way in was learned.
fn known() -> (Maps, FlowKey, FlowKey) {
    let (elsewhere, unanswered) = (another(40001), another(40002));
    let elsewhere = FlowKey {
        remote: key(world::NEIGHBOUR),
        ..elsewhere
    };
    let maps = world::warm().but(|maps| {
        let mut entry = world::live(&elsewhere, 3);
        entry.peer = world::flow_behind(&elsewhere, world::OTHER_PEER);
        maps.flows.insert(elsewhere, entry);
        maps.flows.insert(unanswered, world::live(&unanswered, 2));
    });
    (maps, elsewhere, unanswered)
}

#[test]
fn remote_containers_are_listed_from_their_flows() {
    on_a_bench(|bench| {
        bench.set(&world::cold());
        let caches = bench.datapath.caches().expect("the caches");
        assert!(caches.addresses.is_empty(), "{:?}", caches.addresses);
        let unlearned = "00:00:00:00:00:00";
        for container in &caches.containers {
            let macs = (&*container.destination, &*container.source);
            assert_eq!(macs, (unlearned, unlearned), "{container:?}");
            assert!(!container.live);
        }

        let (maps, ..) = known();
        bench.set(&maps);
        let caches = bench.datapath.caches().expect("the caches");
        let listed: Vec<_> = caches
            .addresses
            .iter()
            .map(|it| (it.container, it.host, it.live))
            .collect();
        let wanted = [
            (world::NEIGHBOUR, world::OTHER_PEER, true),
            (world::REMOTE, world::PEER, true),
        ];
        assert_eq!(listed, wanted);
        assert_eq!(bench.datapath.occupancy().addresses, 2);
        let learned = caches.containers.iter().find(|it| it.live);
        let source = world::GATEWAY_MAC.map(|byte| format!("{byte:02x}"));
        assert_eq!(learned.expect("one").source, source.join(":"));

        // What was learned in an epoch that has ended is still there, and does not count.
        bench.epochs().set(world::EPOCH + 1);
        let caches = bench.datapath.caches().expect("the caches");
        assert_eq!(caches.addresses.len(), 2);
        assert!(caches.addresses.iter().all(|it| !it.live));
    });
}

#[test]
fn with_a_peer_go_the_flows_to_it_and_those_that_may_be() {
    on_a_bench(|bench| {
        let (maps, elsewhere, unanswered) = known();
        bench.set(&maps);
        assert!(bench.maps().flows.contains_key(&unanswered));
        let stays = HashSet::from([world::OTHER_PEER]);
        assert!(bench.datapath.set_peers(&stays).expect("peers"));
        let left = bench.maps();
        let flows: Vec<_> = left.flows.keys().collect();
        assert_eq!(flows, [&elsewhere]);
        let peers: Vec<_> = left.peers.keys().collect();
        assert_eq!(peers, [&peer(world::OTHER_PEER)]);
        assert!(!bench.datapath.set_peers(&stays).expect("peers"));
    });
}
