//! Containers made without oncache: routed over the wire, in the open.

use std::net::Ipv4Addr;

use oncache_testbed::{Container, Host, Lab};

/// A program that is there and does nothing.
pub const NO_DAEMON: &str = "/bin/false";

/// Two hosts with one container each, 10.42.1.2 and 10.42.2.2, that reach each other.
pub fn two_containers() -> (Lab, Container, Container) {
    let lab = Lab::two_hosts(NO_DAEMON);
    let client = container(lab.alpha(), lab.beta(), 1, 2);
    let server = container(lab.beta(), lab.alpha(), 2, 1);
    (lab, client, server)
}

fn container(host: &Host, other: &Host, number: u8, others: u8) -> Container {
    let place = host.add_netns("box");
    let netns = place.netns_path();
    host.sh(&format!(
        "ip link add to-box type veth peer name eth0 netns {netns}
         ip address add 10.42.{number}.1/24 dev to-box
         ip link set to-box up
         ip route add 10.42.{others}.0/24 via {}",
        other.address()
    ));
    host.set_sysctl("net.ipv4.ip_forward", "1");
    place.sh(&format!(
        "ip address add 10.42.{number}.2/24 dev eth0
         ip link set eth0 up
         ip route add default via 10.42.{number}.1"
    ));
    host.adopt(
        &format!("{}-box", host.name),
        Ipv4Addr::new(10, 42, number, 2),
        place,
    )
}
