//! What crashed runs have left is found at a start, and removed once nothing can go by it any more.

use std::{path::Path, time::Duration};

use oncache::{
    coherence::{Changed, Coherence},
    datapath::{AttachMode, Datapath, PIN_ROOT, Sizes, epoch::Tuning, pins::ABI},
};
use oncache_abi::settings::Constants;
use oncache_testbed::{Build, Builds, Host, Lab, Place, assert_same, until_fast};

use super::left::{pins, wanted_pins};
use crate::ONCACHE;

const FLOWS: u32 = 65536;

/// Pins and a device that no record knows, as crashes of this and of other versions could leave.
fn litter(host: &Host) {
    let here = format!("{PIN_ROOT}/maps/{ABI}-{FLOWS}");
    host.sh(&format!(
        "cd {PIN_ROOT}
         ln links/onc-web:egress links/onc-gone:egress
         ln links/eth1:ingress 'links/eth9%2e7:ingress'
         mkdir maps/0123456789abcdef-4096 maps/{ABI}-1024 maps/empty
         ln {here}/FLOWS maps/0123456789abcdef-4096/FLOWS
         ln {here}/SETTINGS maps/{ABI}-1024/SETTINGS
         ip link add onc-lost type veth peer name lost
         ip link set onc-lost alias 'oncache container lost'"
    ));
}

#[test]
fn garbage_goes_at_a_start_and_never_before_all_is_in_place() {
    let lab = Lab::two_hosts(ONCACHE);
    let (alpha, beta) = (lab.alpha(), lab.beta());
    lab.start();
    let web = alpha.add_container("web");
    let server = beta.add_container("server");
    until_fast([alpha, beta], &web, &server);
    let running = alpha.snapshot();
    alpha.kill9();
    litter(alpha);
    let littered = pins(alpha);

    // A start that fails before the overlay stands touches none of it: packets go by these pins.
    alpha.sh("ip route del 10.42.2.0/24; ip route add 10.42.2.0/24 dev lo proto static");
    let line = alpha.try_start().expect_err("a route of somebody else's");
    println!("{}", line.lines().last().unwrap_or_default());
    assert!(line.contains("10.42.2.0/24"), "{line}");
    assert_eq!(pins(alpha), littered);
    assert!(
        alpha
            .output(&["ip", "link", "show", "onc-lost"])
            .status
            .success()
    );

    alpha.sh("ip route del 10.42.2.0/24");
    let before = alpha.log().len();
    alpha.start();
    let log = alpha.log()[before..].to_owned();
    for line in log.lines().filter(|line| line.contains("left")) {
        println!("{line}");
    }
    for name in [
        "onc-gone:egress",
        "eth9%2e7:ingress",
        "0123456789abcdef-4096",
        "onc-lost",
    ] {
        assert!(log.contains(name), "{name} goes unmentioned: {log}");
    }
    assert_eq!(pins(alpha), wanted_pins(ABI, FLOWS, &["onc-web"]));
    assert_same(&running, &alpha.snapshot(), "after the litter");
    until_fast([alpha, beta], &web, &server);
}

#[test]
fn maps_that_were_out_of_use_hold_nothing_that_counts() {
    let builds = Builds::make(ONCACHE, ABI, env!("CARGO_TARGET_TMPDIR"));
    let lab = builds.two_hosts();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    lab.start();
    let web = alpha.add_container("web");
    let server = beta.add_container("server");
    until_fast([alpha, beta], &web, &server);
    let fast = || {
        let caches = alpha.oncache_json(&["cache", "list", "--json"]);
        let flows = caches["flows"].as_array().cloned().expect("flows");
        flows.iter().filter(|flow| flow["state"] == "fast").count()
    };
    let before = (alpha.epoch(), fast());
    assert!(before.1 > 0, "nothing is learned");
    let maps = format!("{PIN_ROOT}/maps/{ABI}-{FLOWS}");
    alpha.sh(&format!(
        "mkdir /sys/fs/bpf/kept; ln {maps}/* /sys/fs/bpf/kept"
    ));

    // Another build takes over and dies before it has removed the former maps.
    builds.install(alpha, Build::OtherAbi);
    alpha.restart();
    alpha.kill9();
    alpha.sh(&format!(
        "mkdir {maps}; mv /sys/fs/bpf/kept/* {maps}; rmdir /sys/fs/bpf/kept"
    ));
    // Whatever happens now, nobody raises the epoch in them.

    builds.install(alpha, Build::Present);
    alpha.start();
    let after = (alpha.epoch(), fast());
    println!(
        "epoch {} with {} fast flows, then {} with {}",
        before.0, before.1, after.0, after.1
    );
    assert!(after.0 > before.0, "the epoch is that of before");
    assert_eq!(after.1, 0, "flows of before another build was in force");
    assert_eq!(alpha.status()["cache"]["flows"], FLOWS);
    until_fast([alpha, beta], &web, &server);
}

#[test]
fn a_start_that_dies_before_its_programs_are_attached_is_begun_anew() {
    let place = Place::new();
    place.enter(|| {
        let tuning = Tuning {
            is_cut: false,
            lease: Duration::from_secs(30),
            ports: (32768, 60999),
            fingerprint: 7,
        };
        // SAFETY: integers and arrays of them.
        let constants = Constants {
            mark_mask: 0x0fff_0000,
            ..unsafe { std::mem::zeroed() }
        };
        let load = || {
            let sizes = Sizes { flows: 1024 };
            let (datapath, epoch) =
                Datapath::load(Path::new(PIN_ROOT), &constants, sizes, AttachMode::Tcx)
                    .expect("programs");
            let coherence = Coherence::default();
            coherence.take_charge_of(epoch).expect("settings");
            (datapath, coherence)
        };
        let announce = |to: &Coherence| to.commit(Changed::announced(tuning)).expect("settings");
        let tune = |to: &Coherence| to.commit(Changed::tuned(tuning)).expect("settings");
        let epoch = |of: &Datapath| of.settings().expect("settings").epoch;
        let (first, coherence) = load();
        assert!(announce(&coherence));
        assert_eq!(epoch(&first), 1);
        drop((first, coherence));
        // The former one's programs may have learned since.
        let (second, coherence) = load();
        assert!(announce(&coherence), "taken for done");
        assert!(tune(&coherence), "not raised once all are attached");
        assert_eq!(epoch(&second), 3);
        drop((second, coherence));
        let (third, coherence) = load();
        assert!(!announce(&coherence), "nothing has changed");
        assert!(!tune(&coherence));
        assert_eq!(epoch(&third), 3);
    });
}
