//! What is for an address of the overlay's network that no container has is refused where it comes from,
//! and leaves no host.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache_testbed::{Capture, Host, Lab, PATIENCE, Place, assert_same, eventually, until_fast};

/// In 10.42.0.0/16, and of no host.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 42, 9, 9);

fn routes(host: &Host) -> String {
    host.run(&["ip", "route", "show", "proto", "79", "type", "unreachable"])
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether a connection from there is refused by a router's word, which the kernel gives about once a
/// second (net/ipv4/route.c, `ip_error`).
fn is_told(place: &Place) -> bool {
    place.enter(|| {
        let to = SocketAddr::from((NOBODY, 9));
        let outcome = TcpStream::connect_timeout(&to, PATIENCE);
        outcome.is_err_and(|error| error.kind() == ErrorKind::HostUnreachable)
    })
}

#[test]
fn what_is_for_nobody_is_refused_and_leaves_no_host() {
    let lab = Lab::two_hosts(ONCACHE);
    let (alpha, beta) = (lab.alpha(), lab.beta());
    // A way out for all that has none of its own.
    alpha.run(&[
        "ip",
        "route",
        "add",
        "default",
        "via",
        &beta.address().to_string(),
    ]);
    alpha.write_config(&alpha.default_config().to_string());
    let before = alpha.snapshot();
    lab.start();
    let (client, server) = (alpha.add_container("client"), beta.add_container("server"));
    until_fast([alpha, beta], &client, &server);
    let wire = Capture::on(beta, "eth1").snap(128).start();

    assert!(is_told(&client), "the container hears nothing");
    assert!(is_told(alpha), "the host hears nothing");
    for place in [&*client, &**alpha] {
        place.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            for _ in 0..5 {
                let _ = socket.send_to(b"to nobody", (NOBODY, 9));
            }
        });
    }
    until_fast([alpha, beta], &client, &server);
    let seen = wire.stop();
    let bare = seen.frames.iter().filter(|frame| {
        let ip = frame.view().ipv4();
        ip.is_some_and(|ip| ip.destination() == NOBODY)
    });
    assert_eq!(bare.count(), 0, "left by the default route");

    // Taken away, it comes back; and it stays without a daemon.
    assert_eq!(routes(alpha), "unreachable 10.42.0.0/16");
    alpha.run(&["ip", "route", "del", "unreachable", "10.42.0.0/16"]);
    eventually("the route is there again", PATIENCE, || {
        routes(alpha) == "unreachable 10.42.0.0/16"
    });
    alpha.kill9();
    assert!(is_told(&client));
    alpha.start();

    // It follows the network.
    let wider = alpha.default_config().network("10.40.0.0/14").to_string();
    alpha.write_config(&wider);
    alpha.signal(Signal::SIGHUP);
    eventually("the route follows", PATIENCE, || {
        routes(alpha) == "unreachable 10.40.0.0/14"
    });
    assert!(is_told(&client));
    alpha.oncache_ok(&["down"]);
    assert_same(&before, &alpha.snapshot(), "after down");
}

#[test]
fn somebody_elses_route_for_the_network_stays_and_is_named_once() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    alpha.sh("ip route add 10.42.0.0/16 via 192.168.50.12 dev eth1 proto static");
    let theirs = || alpha.run(&["ip", "route", "show", "10.42.0.0/16"]);
    let before = theirs();
    lab.start();
    let (client, server) = (
        alpha.add_container("client"),
        lab.beta().add_container("server"),
    );
    until_fast([alpha, lab.beta()], &client, &server);
    let words = "10.42.0.0/16 via 192.168.50.12 dev eth1 proto 4";
    let epoch = alpha.epoch();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(alpha.epoch(), epoch, "no new epoch at each comparison");
    assert_eq!(alpha.log().matches(words).count(), 1, "one line, once");
    let status = alpha.oncache_ok(&["status"]);
    assert!(status.contains(&format!("({words})")), "{status}");
    assert_eq!((theirs(), routes(alpha)), (before, String::new()));

    alpha.run(&["ip", "route", "del", "10.42.0.0/16"]);
    eventually("ours takes its place", PATIENCE, || {
        routes(alpha) == "unreachable 10.42.0.0/16"
    });
    assert!(!alpha.oncache_ok(&["status"]).contains(words));
    assert!(is_told(&client));
}

#[test]
fn a_network_of_one_host_needs_no_route() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    let alone = alpha.default_config().peers(vec![]);
    alpha.write_config(&alone.network("10.42.1.0/24").to_string());
    alpha.start();
    let client = alpha.add_container("client");
    assert_eq!(routes(alpha), "");
    let server = alpha.add_container("server");
    assert!(oncache_testbed::traffic::ping(&client, server.ip, 1).lossless());
    assert!(!alpha.log().contains("ERROR"), "{}", alpha.log());
}
