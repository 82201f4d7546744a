//! Rules outlive the daemon, follow its configuration, and are never half in force.

use std::{
    net::{SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache_testbed::{
    Container, Host, Lab, PATIENCE, assert_same, eventually,
    policy::rule,
    traffic::Probe::{Icmp, Tcp, Udp},
    until_fast, until_same,
};

/// Sends datagrams to a port all the time; tells how many were sent and how many came.
struct Stream<'s> {
    sent: &'s AtomicU64,
    came: &'s AtomicU64,
}

/// Sends to `port` while `work` is done. Returns what it returns.
fn under_datagrams<T>(
    from: &Container,
    to: &Container,
    port: u16,
    work: impl FnOnce(&Stream<'_>) -> T,
) -> T {
    let sender = from.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
    let receiver = to.enter(|| UdpSocket::bind((to.ip, port)).expect("bind"));
    receiver
        .set_read_timeout(Some(Duration::from_millis(20)))
        .expect("a time-out");
    let address = SocketAddr::from((to.ip, port));
    let (sent, came, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    /// Ends the threads, also when the work panics.
    struct Over<'o>(&'o AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        let end = Over(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = sender.send_to(b"datagram", address);
                sent.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(500));
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if receiver.recv(&mut [0; 16]).is_ok() {
                    came.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let outcome = work(&Stream {
            sent: &sent,
            came: &came,
        });
        // What is on its way.
        thread::sleep(Duration::from_millis(50));
        drop(end);
        outcome
    })
}

fn deny_ports(ports: &str) -> String {
    rule(
        "deny",
        &["protocol = \"udp\"", &format!("ports = [{ports}]")],
    )
}

/// Where rules come from, and what they say.
fn listed(host: &Host) -> Vec<String> {
    let list = host.oncache_json(&["policy", "list", "--json"]);
    let rules = list["rules"].as_array().expect("a list");
    let line = |rule: &serde_json::Value| {
        let ports = rule["ports"].as_array().map(|ports| {
            let ports: Vec<&str> = ports.iter().filter_map(serde_json::Value::as_str).collect();
            ports.join(",")
        });
        format!(
            "{} {} {}",
            rule["origin"].as_str().expect("an origin"),
            rule["action"].as_str().expect("an action"),
            ports.unwrap_or_default()
        )
    };
    rules.iter().map(line).collect()
}

#[test]
fn rules_stay_while_the_daemon_is_away() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let client = alpha.add_container("client");
    let server = beta.add_container("server");
    until_fast([alpha, beta], &client, &server);
    Udp(7001).expect(&client, &server, true, "before");
    alpha.apply_policy(&deny_ports("7001"));
    under_datagrams(&client, &server, 7001, |stream| {
        let counted = alpha.rule_packets(1);
        alpha.kill9();
        Udp(7005).expect(&client, &server, true, "no rule denies it");
        thread::sleep(Duration::from_millis(300));
        alpha.start();
        assert_eq!(listed(alpha), ["runtime deny 7001"]);
        let more = alpha.rule_packets(1);
        assert!(more > counted, "counting goes on: {counted}, {more}");
        for _ in 0..3 {
            alpha.restart();
        }
        assert_eq!(listed(alpha), ["runtime deny 7001"]);
        let sent = stream.sent.load(Ordering::Relaxed);
        let came = stream.came.load(Ordering::Relaxed);
        println!(
            "killed and restarted: {sent} datagrams sent, {came} came, {} counted",
            alpha.rule_packets(1)
        );
        assert!(sent > 500, "{sent}");
        assert_eq!(came, 0);
        // A rule more leaves the other's count.
        let before = alpha.rule_packets(1);
        alpha.apply_policy(&format!("{}{}", deny_ports("7001"), deny_ports("7002")));
        assert!(
            alpha.rule_packets(1) >= before,
            "counted from the start again"
        );
        alpha.add_container("another");
        assert!(
            alpha.rule_packets(1) >= before,
            "counted from the start again"
        );
        alpha.clear_policy();
        eventually("datagrams come again", PATIENCE, || {
            stream.came.load(Ordering::Relaxed) > 0
        });
    });
    until_fast([alpha, beta], &client, &server);
}

#[test]
fn a_kill_in_the_middle_leaves_the_old_or_the_new_rules() {
    const ROUNDS: u64 = 20;
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let client = alpha.add_container("client");
    let server = beta.add_container("server");
    let sets = [("7001, 7002", "7001,7002"), ("7002, 7003", "7002,7003")];
    let paths = sets.map(|(ports, shown)| {
        let path = alpha.write_file(&format!("{shown}.toml"), &deny_ports(ports));
        path.to_str().expect("a path of ours").to_owned()
    });
    alpha.oncache_ok(&["policy", "apply", &paths[0]]);
    let (mut answered, mut changed) = (0, 0);
    under_datagrams(&client, &server, 7002, |stream| {
        let mut current = 0;
        for round in 0..ROUNDS {
            let next = 1 - current;
            let done = thread::scope(|scope| {
                let asked = scope.spawn(|| alpha.oncache(&["policy", "apply", &paths[next]]));
                thread::sleep(Duration::from_millis(4 * round));
                alpha.kill9();
                asked.join().expect("the command ends").status.success()
            });
            alpha.start();
            let now = listed(alpha);
            let of = |set: usize| now == [format!("runtime deny {}", sets[set].1)];
            assert!(of(0) || of(1), "round {round}: {now:?}");
            assert!(
                !done || of(next),
                "round {round}: what was answered is in force: {now:?}"
            );
            answered += u64::from(done);
            changed += u64::from(of(next));
            current = usize::from(of(1));
            Udp(7001).expect(&client, &server, current == 1, "as listed");
            Udp(7003).expect(&client, &server, current == 0, "as listed");
        }
        let sent = stream.sent.load(Ordering::Relaxed);
        let came = stream.came.load(Ordering::Relaxed);
        println!(
            "{ROUNDS} kills: {answered} calls were answered before, {changed} took place; of {sent} datagrams \
             that both sets deny {came} came"
        );
        assert!(sent > 1000, "{sent}");
        assert_eq!(came, 0);
    });
}

/// Makes the daemon read its configuration again, and waits until it has.
fn reload(host: &Host, config: &str) {
    host.write_config(config);
    let ready = |host: &Host| {
        let letters = host.notifications();
        letters.iter().filter(|it| it.contains("READY=1")).count()
    };
    let before = ready(host);
    host.signal(Signal::SIGHUP);
    assert!(
        host.wait_notified("READY=1", before + 1, PATIENCE),
        "reloaded"
    );
}

#[test]
fn the_file_and_the_run_time_have_their_places() {
    let lab = Lab::two_hosts(ONCACHE);
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let with = |rules: &str| alpha.default_config().extra(rules).to_string();
    alpha.write_config(&with(&deny_ports("7001")));
    lab.start();
    let client = alpha.add_container("client");
    let server = beta.add_container("server");
    Udp(7001).expect(&client, &server, false, "from the start");
    Udp(7002).expect(&client, &server, true, "from the start");

    // A flow on the fast path that the change does not concern goes on.
    under_datagrams(&client, &server, 7003, |stream| {
        Udp(7002).expect(&client, &server, true, "before the reload");
        reload(alpha, &with(&deny_ports("7002")));
        assert_eq!(listed(alpha), ["file deny 7002"]);
        Udp(7001).expect(&client, &server, true, "after the reload");
        Udp(7002).expect(&client, &server, false, "after the reload");

        reload(alpha, &with("[[policy]]\naction = \"perhaps\"\n"));
        assert!(alpha.log().contains("policy.action \"perhaps\": no action"));
        assert_eq!(listed(alpha), ["file deny 7002"]);
        Udp(7002).expect(&client, &server, false, "after a bad file");
        let sent = stream.sent.load(Ordering::Relaxed);
        // The one that is being sent may still be on its way.
        eventually("every datagram has come", PATIENCE, || {
            stream.came.load(Ordering::Relaxed) >= sent
        });
        println!("{sent} datagrams of another flow came, all of them, through two reloads");
    });

    // The first match over both: run time, then file.
    alpha.apply_policy(&rule(
        "allow",
        &[
            "protocol = \"udp\"",
            "ports = [7002]",
            "to = \"10.42.2.0/24\"",
        ],
    ));
    assert_eq!(listed(alpha), ["runtime allow 7002", "file deny 7002"]);
    Udp(7002).expect(&client, &server, true, "the run-time rule comes first");
    alpha.clear_policy();
    assert_eq!(listed(alpha), ["file deny 7002"]);
    Udp(7002).expect(&client, &server, false, "only the file's");
    reload(alpha, &with(""));
    assert!(listed(alpha).is_empty());
    Udp(7002).expect(&client, &server, true, "no rules");
    let table = alpha.run(&["nft", "list", "table", "inet", "oncache-policy"]);
    assert!(!table.contains("drop"), "{table}");
}

#[test]
fn down_takes_the_rules_with_it() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    // What a start and a down leave by themselves, modules' settings for example.
    alpha.start();
    alpha.oncache_ok(&["down"]);
    let before = alpha.snapshot();
    for with_daemon in [true, false] {
        alpha.start();
        alpha.add_container("one");
        alpha.apply_policy(&rule("deny", &["from = \"one\""]));
        assert!(
            alpha
                .run(&["nft", "list", "tables"])
                .contains("oncache-policy")
        );
        if !with_daemon {
            alpha.kill9();
        }
        alpha.oncache_ok(&["down"]);
        assert_same(&before, &alpha.snapshot(), "after down");
        alpha.start();
        assert!(listed(alpha).is_empty(), "run-time rules are gone for good");
        alpha.oncache_ok(&["down"]);
    }
}

#[test]
fn damage_to_the_rules_is_mended() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let alpha = lab.alpha();
    let one = alpha.add_container("one");
    let two = alpha.add_container("two");
    let far = lab.beta().add_container("far");
    alpha.apply_policy(&deny_ports("7001"));
    thread::sleep(Duration::from_secs(1));
    let whole = alpha.snapshot();
    let first = "nft -a list chain inet oncache-policy backwards | sed -n 's/.*# handle \\([0-9]*\\)$/\\1/p' | tail -1";
    let first = format!("nft delete rule inet oncache-policy backwards handle $({first})");
    let damages = [
        ("the table", "nft delete table inet oncache-policy"),
        (
            "the bridge's table",
            "nft delete table bridge oncache-policy",
        ),
        ("all rules", "nft flush ruleset"),
        ("one rule", &first),
        (
            "a strange rule",
            "nft insert rule inet oncache-policy judge accept",
        ),
        (
            "a strange set",
            "nft add set inet oncache-policy strange '{ type ipv4_addr; }'",
        ),
        (
            "the bridge",
            "ip link set oncache0 type bridge nf_call_iptables 0",
        ),
    ];
    for (what, damage) in damages {
        alpha.sh(damage);
        let took = until_same(alpha, &whole, PATIENCE, what);
        println!("{what}: mended after {took:?}");
        Udp(7001).expect(&one, &far, false, what);
        Udp(7001).expect(&one, &two, false, what);
        Udp(7002).expect(&one, &two, true, what);
    }
}

#[test]
fn a_kernel_that_cannot_judge_everything_gets_no_rules_at_all() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    // As where neither nf_conntrack_bridge nor br_netfilter is loaded. This kernel lacks the former;
    // the latter's settings are covered up.
    if alpha.sysctl("net.bridge.bridge-nf-call-iptables").is_none() {
        panic!("this kernel has no br_netfilter: the test has to be written for it");
    }
    alpha.sh("mount -t tmpfs none /proc/sys/net/bridge");
    alpha.start();
    let one = alpha.add_container("one");
    let two = alpha.add_container("two");
    let before = alpha.snapshot();
    let path = alpha.write_file("rules.toml", &rule("deny", &[]));
    let said = alpha.refused(&["policy", "apply", path.to_str().expect("a path of ours")]);
    println!("{said}");
    assert!(
        said.contains("cannot judge packets between containers of one host (")
            && said.contains("nf_conntrack_bridge"),
        "{said}"
    );
    assert!(listed(alpha).is_empty());
    assert_same(&before, &alpha.snapshot(), "after a refused policy");
    Icmp.expect(&one, &two, true, "nothing is denied");
    alpha.stop();
    alpha.write_config(&alpha.default_config().extra(&rule("deny", &[])).to_string());
    let stopped = alpha.snapshot();
    let said = alpha.try_start().expect_err("no start without its policy");
    assert!(said.contains("cannot judge packets"), "{said}");
    assert_same(&stopped, &alpha.snapshot(), "after a refused start");
    let config = alpha.config_path().display().to_string();
    let check = alpha.oncache(&["check", "--config", &config]);
    let checked = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(
        !check.status.success() && checked.contains("MISSING  network policy: this kernel cannot"),
        "check says what run says: {checked}"
    );
}

#[test]
fn a_rule_that_nft_refuses_is_named_and_changes_nothing() {
    let lab = Lab::two_hosts(ONCACHE);
    let alpha = lab.alpha();
    let script = "#!/bin/sh\ninput=$(mktemp)\ncase \" $* \" in *' -f '*) cat > $input ;; esac\n\
        if grep -q 6666 $input; then echo 'Error: not this one' >&2; rm $input; exit 1; fi\n\
        /usr/sbin/nft \"$@\" < $input; status=$?; rm $input; exit $status\n";
    alpha.sh("mkdir /run/testbed/bin");
    let path = alpha.write_file("bin/nft", script);
    alpha.enter(|| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a script");
    });
    let own_path = format!(
        "/run/testbed/bin:{}",
        std::env::var("PATH").expect("a PATH")
    );
    alpha
        .try_start_with(|command| {
            command.env("PATH", own_path);
        })
        .expect("started");
    lab.beta().start();
    let one = alpha.add_container("one");
    let far = lab.beta().add_container("far");
    alpha.apply_policy(&deny_ports("7001"));
    let before = alpha.snapshot();
    let rules: Vec<String> = (1..=20)
        .map(|number| deny_ports(if number == 13 { "6666" } else { "7002" }))
        .collect();
    let path = alpha.write_file("rules.toml", &rules.concat());
    let said = alpha.refused(&["policy", "apply", path.to_str().expect("a path of ours")]);
    println!("{said}");
    assert!(said.contains("policy rule 13 (deny from any to any udp 6666): nft refuses it: not this one; the rules in force are unchanged"), "{said}");
    assert_same(&before, &alpha.snapshot(), "after a refused rule");
    assert_eq!(listed(alpha), ["runtime deny 7001"]);
    Udp(7001).expect(&one, &far, false, "the old rules");
    alpha.kill9();
    alpha.start();
    assert_eq!(listed(alpha), ["runtime deny 7001"], "nor on disk");
}

#[test]
fn a_thousand_rules_are_applied_in_reasonable_time() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let one = alpha.add_container("one");
    let far = beta.add_container("far");
    let rules: Vec<String> = (0..1000)
        .map(|number| {
            let from = format!("from = \"10.{}.{}.0/24\"", 100 + number / 250, number % 250);
            let ports = format!(
                "ports = [{}, \"{}-{}\"]",
                1 + number,
                20_000 + number,
                21_000 + number
            );
            rule(
                "deny",
                &[&from, "to = \"10.42.2.0/24\"", "protocol = \"tcp\"", &ports],
            )
        })
        .collect();
    let last = rule("deny", &["protocol = \"tcp\"", "ports = [7001]"]);
    let began = Instant::now();
    alpha.apply_policy(&format!("{}{last}", rules.concat()));
    let applied = began.elapsed();
    let began = Instant::now();
    assert_eq!(listed(alpha).len(), 1001);
    let listing = began.elapsed();
    Tcp(7001).expect(&one, &far, false, "the last of them");
    Tcp(7002).expect(&one, &far, true, "none of them");
    let began = Instant::now();
    alpha.add_container("two");
    let added = began.elapsed();
    let began = Instant::now();
    alpha.clear_policy();
    println!(
        "1,001 rules: applied in {applied:?}, listed in {listing:?}, a container added beside them in \
         {added:?}, cleared in {:?}",
        began.elapsed()
    );
    let path = alpha.write_file("rules.toml", &rule("deny", &[]).repeat(2001));
    let said = alpha.refused(&["policy", "apply", path.to_str().expect("a path of ours")]);
    assert!(
        said.contains("2001 rules") && said.contains("at most 2000"),
        "{said}"
    );
    assert!(listed(alpha).is_empty());
}
