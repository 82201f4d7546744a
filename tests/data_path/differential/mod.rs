//! The same packets through two overlays, one without the cache and one with it, warm: what arrives
//! in the containers and what is on the wire has to be the same, byte for byte and in order.
//!
//! What may differ is written down in `differential/permitted.rs`, and nowhere else. Packets are
//! generated, from a seed; a sequence on which the two differ is made small and stored in
//! `differential/regressions`, whose files are replayed by every run.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `ONCACHE_DIFFERENTIAL_PACKETS` | how many packets; 100,000 unless set |
//! | `ONCACHE_DIFFERENTIAL_SEED` | another sequence |
//! | `ONCACHE_DIFFERENTIAL_CLASSES` | these classes only, by name, with commas between |

pub mod addresses;
pub mod bench;
pub mod checksum;
pub mod classes;
pub mod compare;
pub mod craft;
pub mod packet;
pub mod pair;
pub mod permitted;
pub mod search;
pub mod tally;
pub mod values;

use std::{
    env, fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use self::{
    compare::Comparison,
    packet::{Class, Packet},
    pair::Pair,
    tally::Tally,
};
use proptest::{
    strategy::{Strategy as _, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// Packets of one sequence: few enough for the queues of the kernel.
const SEQUENCE: usize = 200;

/// Two pairs of labs at once would be in each other's way on the one CPU that sends.
static ALONE: Mutex<()> = Mutex::new(());

/// Classes that the fast path is there for.
const ORDINARY: [Class; 5] = [
    Class::UdpChecksum,
    Class::PendingChecksum,
    Class::TcpAggregate,
    Class::Tos,
    Class::Flags,
];
/// Classes of which a container's host may send nothing by the fast path.
const NEVER_OUT: [Class; 8] = [
    Class::Fragments,
    Class::Options,
    Class::Echo,
    Class::Error,
    Class::Protocol,
    Class::Vlan,
    Class::Ethertype,
    Class::IpChecksum,
];

/// Classes of which none may be delivered by the fast path. Not the others: the sender's host has
/// put fragments together and taken priority tags off.
const NEVER_IN: [Class; 6] = [
    Class::Options,
    Class::Echo,
    Class::Error,
    Class::Protocol,
    Class::Ethertype,
    Class::IpChecksum,
];

#[test]
fn both_paths_do_the_same_with_generated_packets() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = number("ONCACHE_DIFFERENTIAL_PACKETS", 100_000);
    let seed = number("ONCACHE_DIFFERENTIAL_SEED", 1);
    let classes = chosen_classes();
    let mut bytes = [0x5a; 16];
    bytes[..8].copy_from_slice(
        &u64::try_from(seed)
            .expect("a seed of 64 bits")
            .to_le_bytes(),
    );
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategies: Vec<_> = classes
        .iter()
        .map(|class| classes::packets(*class))
        .collect();

    let begun = Instant::now();
    let mut pair = Pair::new();
    println!("two labs with all flows open after {:.1?}", begun.elapsed());
    let mut tally = Tally::default();
    let mut sent = 0;
    while sent < wanted {
        let trees: Vec<Box<dyn ValueTree<Value = Packet>>> = (0..SEQUENCE)
            .map(|at| {
                // Each class comes up equally often, and next to every other.
                let strategy = &strategies[(sent + at * 7) % strategies.len()];
                let tree = strategy.new_tree(&mut runner).expect("a packet");
                Box::new(tree) as Box<dyn ValueTree<Value = Packet>>
            })
            .collect();
        let packets = search::current(&trees);
        let comparison = pair.run(&packets);
        tally.add(&packets, &comparison.fates);
        tally.overtakings += comparison.overtakings;
        sent += SEQUENCE;
        if sent % (20 * SEQUENCE) == 0 {
            let estranged = pair.estranged();
            assert!(
                estranged.is_empty(),
                "conntrack's TCP states after {sent} packets, without and with the cache: {estranged:#?}"
            );
        }
        if !comparison.differences.is_empty() {
            println!(
                "after {sent} packets of seed {seed}:\n{}",
                report(&packets, &comparison)
            );
            fail(&mut pair, trees, seed, sent);
        }
    }
    println!(
        "{sent} packets of seed {seed} in {:.1?}\n{tally}",
        begun.elapsed()
    );
    println!("{}", pair.counted());
    let [egress, ingress] = pair.hits();
    assert_eq!(
        egress.0, egress.1,
        "hits of egress, as counted and as recorded"
    );
    assert_eq!(
        ingress.0, ingress.1,
        "hits of ingress, as counted and as recorded"
    );
    for class in classes {
        let fate = tally.of(class);
        if ORDINARY.contains(&class) {
            let least = fate.sent * 3 / 4;
            assert!(
                fate.fast_out > least,
                "{}: little was fast: {fate:?}",
                class.name()
            );
        }
        if NEVER_OUT.contains(&class) {
            assert_eq!(fate.fast_out, 0, "{}", class.name());
        }
        if NEVER_IN.contains(&class) {
            assert_eq!(fate.fast_in, 0, "{}", class.name());
        }
    }
    assert_eq!(pair.finish(), 0, "frames that the recordings lost");
}

#[test]
fn what_once_differed_does_so_no_more() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut pair = Pair::new();
    let mut names: Vec<_> = fs::read_dir(regressions())
        .expect("the directory of regressions")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    names.sort();
    for path in names {
        let text = fs::read_to_string(&path).expect("a regression");
        let packets: Vec<Packet> = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        pair.resettle();
        let comparison = pair.run(&packets);
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        println!("{name}: {} packets", packets.len());
        assert!(
            comparison.differences.is_empty(),
            "{}:\n{}",
            path.display(),
            report(&packets, &comparison)
        );
    }
    assert_eq!(pair.finish(), 0, "frames that the recordings lost");
}

/// Makes the sequence small, stores it, and ends the test.
fn fail(
    pair: &mut Pair,
    trees: Vec<Box<dyn ValueTree<Value = Packet>>>,
    seed: usize,
    sent: usize,
) -> ! {
    let packets = search::current(&trees);
    if !(0..3).any(|_| search::fails(pair, &packets)) {
        panic!("seen once, not again in three repetitions");
    }
    let packets = search::shrink(pair, trees);
    let text = serde_json::to_string_pretty(&packets).expect("packets as JSON");
    let path = regressions().join(format!("found-by-seed-{seed}-after-{sent}.json"));
    fs::write(&path, &text).expect("a new regression");
    pair.resettle();
    let comparison = pair.run(&packets);
    panic!(
        "the paths differ; stored as {}, which deserves a better name:\n{text}\n{}",
        path.display(),
        report(&packets, &comparison)
    );
}

fn report(packets: &[Packet], comparison: &Comparison) -> String {
    let lines = comparison.differences.iter().take(10).map(|difference| {
        let packet = difference.index.and_then(|index| packets.get(index));
        let packet = packet.map(|packet| serde_json::to_string(packet).unwrap_or_default());
        format!("- {}\n  {}", difference.what, packet.unwrap_or_default())
    });
    let count = comparison.differences.len();
    format!(
        "{count} differences\n{}",
        lines.collect::<Vec<_>>().join("\n")
    )
}

fn regressions() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data_path/differential/regressions")
}

fn chosen_classes() -> Vec<Class> {
    let Ok(names) = env::var("ONCACHE_DIFFERENTIAL_CLASSES") else {
        return Class::ALL.to_vec();
    };
    let class = |name: &str| {
        let known = Class::ALL.iter().find(|class| class.name() == name);
        *known.unwrap_or_else(|| panic!("no class {name}"))
    };
    names.split(',').map(class).collect()
}

fn number(variable: &str, default: usize) -> usize {
    let Ok(text) = env::var(variable) else {
        return default;
    };
    let digits = text.replace('_', "");
    digits
        .parse()
        .unwrap_or_else(|error| panic!("{variable}={text}: {error}"))
}
