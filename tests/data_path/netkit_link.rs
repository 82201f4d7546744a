//! The link calls that aya does not make for netkit. What they have in common with links of other types is
//! tried on a tcx link, which every kernel of these tests has; netkit itself in vmtests/netkit.py.

use std::{os::fd::AsFd as _, path::Path};

use aya::programs::{ProgramInfo, loaded_programs};
use nix::errno::Errno;
use oncache::{
    datapath::{AttachMode, Datapath, PIN_ROOT, Sizes, attach::Role, netkit_link::NetkitLink},
    netlink::Netlink,
};
use oncache_abi::settings::Constants;
use oncache_testbed::Place;

fn load() -> Datapath {
    // SAFETY: integers and arrays of them.
    let constants = Constants {
        mark_mask: 0x0fff_0000,
        ..unsafe { std::mem::zeroed() }
    };
    let sizes = Sizes { flows: 1024 };
    let loaded = Datapath::load(Path::new(PIN_ROOT), &constants, sizes, AttachMode::Tcx);
    loaded.expect("programs").0
}

/// The program that `datapath` has on the device.
fn running(datapath: &Datapath, device: &str, program: &str) -> u32 {
    let attachments = datapath.attachments().expect("attachments");
    let found = attachments
        .iter()
        .find(|it| it.device == device && it.program == program);
    found.expect("attached").program_id
}

fn program(id: u32) -> ProgramInfo {
    let all = loaded_programs().flatten();
    all.into_iter()
        .find(|program| program.id() == id)
        .expect("loaded")
}

fn code<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> Option<i32> {
    outcome.expect_err("must be refused").raw_os_error()
}

#[test]
fn a_pinned_link_changes_its_program_until_its_device_goes() {
    let place = Place::new();
    place.enter(|| {
        place.sh("ip link add one type veth peer name one-end; ip link add two type veth peer name two-end");
        let mut datapath = load();
        datapath.attach("one", Role::Veth).expect("attached");
        datapath.attach("two", Role::Veth).expect("attached");
        let (learner, sender) = (
            running(&datapath, "one", "ingress_init"),
            running(&datapath, "one", "egress"),
        );
        assert_ne!(learner, sender);

        let pin = Path::new(PIN_ROOT).join("links/one:egress");
        let link = NetkitLink::from_pin(&pin).expect("pinned");
        let replacement = program(learner).fd().expect("a descriptor");
        link.replace(replacement.as_fd()).expect("replaced");
        assert_eq!(running(&datapath, "one", "egress"), learner);

        let second = Path::new(PIN_ROOT).join("links/e:egress-netkit");
        assert_eq!(code(link.pin(&pin)), Some(Errno::EEXIST as i32));
        link.pin(&second).expect("pinned again");
        drop(link);
        std::fs::remove_file(&pin).expect("unpinned");
        let attachments = datapath.attachments().expect("attachments");
        let found = attachments.iter().find(|it| it.device == "e");
        let found = found.expect("the second pin keeps the link");
        assert_eq!((&*found.program, &*found.link), ("egress", "netkit"));

        place.sh("ip link del one");
        let link = NetkitLink::from_pin(&second).expect("pinned");
        let gone = link.replace(replacement.as_fd());
        assert_eq!(code(gone), Some(Errno::ENOLINK as i32));
        let absent = NetkitLink::from_pin(&pin);
        assert_eq!(code(absent), Some(Errno::ENOENT as i32));

        // A pin that is nobody's goes, and those of the devices that are ours stay.
        let removed = datapath.remove_other_links(&[("two", Role::Veth)]);
        let removed = removed.expect("removed");
        assert!(removed.contains(&"e:egress-netkit".to_owned()), "{removed:?}");
        assert_ne!(running(&datapath, "two", "egress"), 0);
        let removed = datapath.remove_other_links(&[("two", Role::Netkit)]);
        assert_eq!(removed.expect("removed"), ["two:egress"]);
    });
}

#[test]
fn a_device_that_is_no_netkit_is_refused_in_one_line() {
    let place = Place::new();
    place.enter(|| {
        place.sh("ip link add one type veth peer name one-end");
        let mut datapath = load();
        let refused = datapath.attach("one", Role::Netkit).expect_err("no netkit");
        let line = refused.to_string();
        println!("{line}");
        assert!(
            line.starts_with("attach program egress to one: netkit peer hook: "),
            "{line}"
        );
        assert!(!line.contains('\n'), "{line}");
        let attachments = datapath.attachments().expect("attachments");
        assert!(
            attachments.iter().all(|it| it.program != "egress"),
            "{attachments:?}"
        );
    });
}

#[test]
fn asking_for_netkit_makes_nothing() {
    let place = Place::new();
    place.enter(|| {
        let before = place.sh("ip -br link");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let there = runtime.block_on(async {
            let netlink = Netlink::new().expect("netlink");
            netlink.has_netkit().await.expect("an answer")
        });
        // ip(8) may know the driver or not; the kernel answers it as it answers us.
        let made = place.sh(
            "ip link add probe type netkit 2>/dev/null && ip link del probe && echo true || echo false",
        );
        println!("netkit: {there}; by ip: {}", made.trim());
        assert_eq!(there.to_string(), made.trim());
        assert_eq!(place.sh("ip -br link"), before);
    });
}
