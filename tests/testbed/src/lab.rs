//! A lab: hosts on one underlay network.

use std::{
    fs,
    ops::Index,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crate::{
    config::Peer,
    host::{Host, UNDERLAY},
    namespace::Place,
};

const NAMES: [&str; 8] = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta",
];

/// Some hosts whose `eth1` are on one Ethernet, 192.168.50.0/24.
///
/// Two hosts are joined by a wire, more by a switch. Dropping the lab kills the daemons; devices,
/// rules and pinned objects go with the namespaces.
#[derive(Debug)]
pub struct Lab {
    hosts: Vec<Host>,
    switch: Option<Place>,
}

impl Lab {
    /// Hosts `alpha` (192.168.50.11) and `beta` (192.168.50.12), on a wire of their own.
    /// `oncache` is the binary under test; it is not started yet.
    pub fn two_hosts(oncache: impl Into<PathBuf>) -> Self {
        Self::hosts(2, oncache)
    }

    /// `count` hosts: `alpha`, `beta`, `gamma`, ... at 192.168.50.11, .12, .13, ...
    ///
    /// # Panics
    /// If `count` is not between 1 and 8, or namespaces and devices cannot be made.
    pub fn hosts(count: usize, oncache: impl Into<PathBuf>) -> Self {
        assert!(
            (1..=NAMES.len()).contains(&count),
            "a lab has 1 to 8 hosts, not {count}"
        );
        let oncache = oncache.into();
        let nodes: Vec<Peer> = NAMES[..count].iter().zip(1..).map(Peer::of_lab).collect();
        let hosts: Vec<Host> = nodes
            .iter()
            .map(|node| Host::new(node, &nodes, &oncache))
            .collect();
        let switch = match hosts.as_slice() {
            [alpha, beta] => {
                wire(
                    (alpha, UNDERLAY, index(alpha)),
                    (beta, UNDERLAY, index(beta)),
                );
                None
            }
            _ => Some(switch(&hosts)),
        };
        for host in &hosts {
            let (mac, address) = (host.underlay_mac(), host.address());
            host.sh(&format!(
                "ip link set {UNDERLAY} address {mac}
                 ip address add {address}/24 dev {UNDERLAY}
                 ip link set {UNDERLAY} up"
            ));
        }
        for host in &hosts {
            host.enter(|| wait_until(|| carries(UNDERLAY), &host.name));
            if let Some(switch) = &switch {
                switch.enter(|| wait_until(|| forwards(&host.name), &host.name));
            }
        }
        Self { hosts, switch }
    }

    /// All hosts, `alpha` first.
    #[must_use]
    pub fn all(&self) -> &[Host] {
        &self.hosts
    }

    /// The first host.
    #[must_use]
    pub fn alpha(&self) -> &Host {
        &self.hosts[0]
    }

    /// The second host.
    ///
    /// # Panics
    /// If the lab has only one.
    #[must_use]
    pub fn beta(&self) -> &Host {
        &self.hosts[1]
    }

    /// The third host.
    ///
    /// # Panics
    /// If the lab has fewer.
    #[must_use]
    pub fn gamma(&self) -> &Host {
        &self.hosts[2]
    }

    /// The switch, where there is one: a place with the bridge `switch` and one port per host,
    /// named as the host is.
    #[must_use]
    pub fn switch(&self) -> Option<&Place> {
        self.switch.as_ref()
    }

    /// Starts the daemon on every host and waits until all are ready.
    ///
    /// # Panics
    /// If one does not become ready.
    pub fn start(&self) {
        thread::scope(|scope| {
            let starting: Vec<_> = self
                .hosts
                .iter()
                .map(|host| scope.spawn(|| host.try_start()))
                .collect();
            for (host, start) in self.hosts.iter().zip(starting) {
                let result = start.join().expect("starting reports instead of panicking");
                result.unwrap_or_else(|error| panic!("starting oncache on {}: {error}", host.name));
            }
        });
    }

    /// Changes the MTU of the whole underlay.
    pub fn set_underlay_mtu(&self, mtu: u32) {
        let mtu = mtu.to_string();
        for host in &self.hosts {
            if let Some(switch) = &self.switch {
                switch.run(&["ip", "link", "set", &host.name, "mtu", &mtu]);
            }
            host.run(&["ip", "link", "set", UNDERLAY, "mtu", &mtu]);
        }
    }
}

impl Index<usize> for Lab {
    type Output = Host;

    fn index(&self, index: usize) -> &Host {
        &self.hosts[index]
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            for host in &self.hosts {
                host.show_log();
            }
        }
    }
}

/// Carrier comes some time after a device was set up.
fn wait_until(settled: impl Fn() -> bool, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !settled() {
        assert!(
            Instant::now() < deadline,
            "the underlay of {name} is up in ten seconds"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the device has its carrier, and its link-local address if there is IPv6.
fn carries(device: &str) -> bool {
    let state = fs::read_to_string(format!("/sys/class/net/{device}/operstate"));
    let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6");
    let has_address = |text: String| text.lines().any(|line| line.ends_with(device));
    state.is_ok_and(|state| state.trim() == "up") && addresses.map_or(true, has_address)
}

/// Whether the bridge sends and takes packets at the port.
fn forwards(port: &str) -> bool {
    let state = fs::read_to_string(format!("/sys/class/net/{port}/brport/state"));
    state.is_ok_and(|state| state.trim() == "3")
}

/// A pair of veth devices, one end in each place, with the given device indices. The two have to
/// differ: the kernel tells virtual devices, whose carrier it passes on at once, by that, and
/// leaves others waiting for up to a second.
fn wire(here: (&Place, &str, u8), there: (&Place, &str, u8)) {
    let (place, name, index) = here;
    let (other, other_name, other_index) = there;
    let netns = other.netns_path();
    place.sh(&format!(
        "ip link add {name} index {index} type veth \
         peer name {other_name} index {other_index} netns {netns}"
    ));
}

/// The index of a host's underlay device: another one on every host.
fn index(host: &Host) -> u8 {
    host.address().octets()[3]
}

fn switch(hosts: &[Host]) -> Place {
    let switch = Place::new();
    switch.sh(
        "ip link add switch type bridge stp_state 0 mcast_snooping 0 forward_delay 0
               ip link set switch up",
    );
    for host in hosts {
        let port = &host.name;
        wire(
            (&switch, port, 100 + index(host)),
            (host, UNDERLAY, index(host)),
        );
        switch.sh(&format!(
            "ip link set {port} master switch; ip link set {port} up"
        ));
    }
    switch
}
