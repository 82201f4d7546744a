//! The daemons of both hosts die, freeze, come back and are exchanged for other builds a hundred
//! times, at random moments, and no flow between their containers takes notice.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache::{
    control::api::{HitRatio, Stats},
    datapath::pins::ABI,
};
use oncache_testbed::{
    Build, Builds, Container, Host, PATIENCE, Random,
    traffic::{Direction, Rounds, RoundsReport, Transfer, TransferHandle},
    until_fast,
};

const TRANSFERS: usize = 24;
const CONVERSATIONS: usize = 8;

/// How long a frozen daemon stays frozen.
const FROZEN: Duration = Duration::from_secs(5);

/// How often it is looked whether the hit ratio is what it was.
const LOOK: Duration = Duration::from_millis(200);
/// Packets that a hit ratio is made of.
const ENOUGH: u64 = 200;

/// What happens to a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// SIGKILL, and a start.
    Kill,
    /// SIGSTOP for five seconds.
    Freeze,
    /// SIGTERM, and a start.
    Restart,
    /// Another build is installed, and then one of the other two.
    Upgrade,
}

/// The events of one host, in random order: fifty.
fn events(random: &mut Random) -> Vec<Event> {
    let shares = [
        (Event::Kill, 17),
        (Event::Freeze, 3),
        (Event::Restart, 13),
        (Event::Upgrade, 17),
    ];
    let mut events: Vec<Event> = shares
        .iter()
        .flat_map(|(event, times)| [*event].repeat(*times))
        .collect();
    random.shuffle(&mut events);
    events
}

/// What came of one event.
struct Outcome {
    event: Event,
    /// What build follows what.
    builds: (Build, Build),
    /// Without an answering daemon.
    away: Duration,
    /// From its return until the hit ratio was above 99 % again.
    back: Duration,
    /// The ratio when that was seen, the lesser of out and in.
    ratio: f64,
}

fn stats(host: &Host) -> Stats {
    serde_json::from_value(host.oncache_json(&["stats", "--json"])).expect("what the API says")
}

/// The lesser of both hit ratios between two looks, and packets that went into it.
fn ratio(before: &Stats, after: &Stats) -> (f64, u64) {
    let mut grown = after.counters.clone();
    for count in &mut grown {
        let same = |it: &&oncache::datapath::counters::Count| {
            (&it.program, &it.reason) == (&count.program, &count.reason)
        };
        let former = before.counters.iter().find(same).map_or(0, |it| it.packets);
        count.packets -= former;
    }
    let packets = grown.iter().map(|count| count.packets).sum();
    let HitRatio { egress, ingress } = HitRatio::of(&grown);
    (egress.unwrap_or(0.0).min(ingress.unwrap_or(0.0)), packets)
}

/// Waits after a daemon's return until the ratio is above 99 %. How soon that is, is the machine's.
fn hits_are_back(host: &Host) -> (Duration, f64) {
    // It is back when it answers.
    let mut former = stats(host);
    let begun = Instant::now();
    let mut seen = Vec::new();
    while begun.elapsed() < PATIENCE {
        thread::sleep(LOOK);
        let now = stats(host);
        let (ratio, packets) = ratio(&former, &now);
        if packets <= ENOUGH {
            continue;
        }
        seen.push(format!("{:.2} % of {packets} packets", ratio * 100.0));
        if ratio > 0.99 {
            return (begun.elapsed(), ratio);
        }
        former = now;
    }
    panic!(
        "{}: within {PATIENCE:?} of its daemon's return: {seen:?}",
        host.name
    );
}

/// Lets an event happen, and returns what build runs then, and how long no daemon answered.
fn happen(
    builds: &Builds,
    host: &Host,
    event: Event,
    build: Build,
    random: &mut Random,
) -> (Build, Duration) {
    let begun = Instant::now();
    let mut next = build;
    match event {
        Event::Kill => {
            host.kill9();
            host.start();
        }
        Event::Restart => host.restart(),
        Event::Freeze => {
            host.signal(Signal::SIGSTOP);
            thread::sleep(FROZEN);
            host.signal(Signal::SIGCONT);
        }
        Event::Upgrade => {
            let others = [Build::Present, Build::SameAbi, Build::OtherAbi];
            let others: Vec<Build> = others.into_iter().filter(|other| *other != build).collect();
            next = *random.one_of(&others);
            builds.install(host, next);
            if random.below(2) == 0 {
                host.kill9();
                host.start();
            } else {
                host.restart();
            }
        }
    }
    (next, begun.elapsed())
}

/// A host's fifty events.
fn chaos(builds: &Builds, host: &Host, mut random: Random) -> Vec<Outcome> {
    let mut build = Build::Present;
    let events = events(&mut random);
    let happened = events.into_iter().map(|event| {
        thread::sleep(Duration::from_millis(random.below(300).into()));
        let former = build;
        let away;
        (build, away) = happen(builds, host, event, build, &mut random);
        let (back, ratio) = hits_are_back(host);
        let builds = (former, build);
        Outcome {
            event,
            builds,
            away,
            back,
            ratio,
        }
    });
    happened.collect()
}

/// Says for each kind of event how often it was, and the worst that was seen.
fn show(host: &Host, outcomes: &[Outcome]) {
    let mut kinds: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        let kind = match (outcome.event, outcome.builds) {
            (Event::Upgrade, (from, to)) if from.shares_maps_with(to) => {
                "Upgrade, same ABI".to_owned()
            }
            (Event::Upgrade, _) => "Upgrade, other ABI".to_owned(),
            (event, _) => format!("{event:?}"),
        };
        kinds.entry(kind).or_default().push(outcome);
    }
    for (kind, outcomes) in kinds {
        let longest = |of: fn(&Outcome) -> Duration| outcomes.iter().map(|it| of(it)).max();
        let least = outcomes.iter().map(|it| it.ratio).fold(1.0, f64::min);
        println!(
            "{}: {} times {kind}: away for {:?} at most, hit ratio above 99 % after {:?} at most \
             (then at least {:.2} %)",
            host.name,
            outcomes.len(),
            longest(|it| it.away).expect("some"),
            longest(|it| it.back).expect("some"),
            least * 100.0
        );
    }
}

/// Flows of both kinds between two containers a host.
fn transfers(clients: &[Container], servers: &[Container]) -> Vec<TransferHandle> {
    let start = |number: usize| {
        Transfer::new(
            &clients[number % clients.len()],
            &servers[number / 2 % servers.len()],
            0,
        )
        .direction(Direction::Both)
        .pace(256 << 10)
        .seed(number as u64)
        .start()
    };
    (0..TRANSFERS).map(start).collect()
}

#[test]
fn a_hundred_accidents_of_the_daemons_under_traffic() {
    let _alone = crate::with_the_queues_alone();
    let mut random = Random::seeded();
    let builds = Builds::make(ONCACHE, ABI, env!("CARGO_TARGET_TMPDIR"));
    let lab = builds.two_hosts();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    lab.start();
    let clients = ["one", "two"].map(|name| alpha.add_container(name));
    let servers = ["three", "four"].map(|name| beta.add_container(name));
    for (client, server) in clients.iter().zip(&servers) {
        until_fast([alpha, beta], client, server);
    }
    let going = AtomicBool::new(true);
    let conversation = Rounds {
        pause: Duration::from_millis(2),
        patience: Duration::from_secs(10),
        request: 400,
        response: 1200,
        ..Rounds::lasting(Duration::from_secs(600))
    };
    let begun = Instant::now();
    let (outcomes, reports, conversations) = thread::scope(|scope| {
        let talks: Vec<_> = (0..CONVERSATIONS)
            .map(|number| {
                let (client, server) = (&clients[number % 2], &servers[number / 2 % 2]);
                scope.spawn(|| conversation.udp_while(client, server, 0, &going))
            })
            .collect();
        let transfers = transfers(&clients, &servers);
        let chaoses: Vec<_> = lab
            .all()
            .iter()
            .map(|host| {
                let (builds, random) = (&builds, random.split());
                scope.spawn(move || chaos(builds, host, random))
            })
            .collect();
        let outcomes: Vec<_> = chaoses.into_iter().map(|chaos| chaos.join()).collect();
        let reports: Vec<_> = transfers.into_iter().map(TransferHandle::stop).collect();
        going.store(false, Ordering::Relaxed);
        let talks: Vec<RoundsReport> = talks
            .into_iter()
            .map(|talk| talk.join().expect("the rounds end"))
            .collect();
        (outcomes, reports, talks)
    });
    let elapsed = begun.elapsed();
    for (host, outcomes) in lab.all().iter().zip(outcomes) {
        let outcomes = outcomes.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(outcomes.len(), 50);
        show(host, &outcomes);
    }
    let lost = reports.iter().filter(|report| !report.intact()).count();
    let bytes: u64 = reports.iter().map(|report| report.received()).sum();
    let pause = reports.iter().map(|report| report.longest_pause()).max();
    let again: u32 = reports.iter().map(|report| report.retransmits()).sum();
    println!(
        "{TRANSFERS} TCP connections for {elapsed:?}: {lost} lost or with a wrong hash, {bytes} bytes \
         received, longest pause {pause:?}, {again} segments sent again"
    );
    let sum = |of: fn(&RoundsReport) -> u64| conversations.iter().map(of).sum::<u64>();
    let slowest = conversations.iter().map(|report| report.slowest).max();
    println!(
        "{CONVERSATIONS} UDP flows: {} of {} rounds, {} lost, {} wrong, slowest {slowest:?}",
        sum(|it| it.completed),
        sum(|it| it.asked),
        sum(|it| it.lost),
        sum(|it| it.wrong)
    );
    for report in &reports {
        assert!(report.intact(), "{report}");
    }
    for report in &conversations {
        let whole = report.error.is_none() && report.completed == report.asked;
        assert!(whole, "{report}");
    }
    for (host, devices) in [
        (alpha, ["onc-one", "onc-two"]),
        (beta, ["onc-three", "onc-four"]),
    ] {
        let programs = host.snapshot().section("program").len();
        assert_eq!(
            programs,
            2 + 2 * devices.len(),
            "{}: each program once",
            host.name
        );
        let maps = host.sh("ls /sys/fs/bpf/oncache/maps");
        assert_eq!(maps.lines().count(), 1, "{}: {maps}", host.name);
    }
}
