//! Hosts that lack something: what is said, and what works all the same.

use std::{fs, os::unix::fs::PermissionsExt, process::Output, time::Duration};

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache_testbed::{
    Host, Lab, PATIENCE, assert_same, complaint, output_within, traffic, until_fast,
};

/// Where anybody can run the binary and read the configuration.
const BINARY: &str = "/run/testbed/oncache";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs oncache as a user without any privilege.
fn as_nobody(host: &Host, arguments: &[&str]) -> Output {
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    host.output(&[&nobody[..], &["--inh-caps=-all", BINARY], arguments].concat())
}

fn prepare(host: &Host) -> String {
    host.enter(|| -> std::io::Result<()> {
        fs::copy(crate::ONCACHE, BINARY)?;
        fs::set_permissions(BINARY, fs::Permissions::from_mode(0o755))
    })
    .expect("a copy of the binary");
    host.write_config(&host.default_config().to_string());
    host.config_path().display().to_string()
}

/// The lines of `check` that begin with a verdict.
fn verdicts<'a>(checked: &'a str, verdict: &str) -> Vec<&'a str> {
    let lines = checked.lines().map(str::trim_start);
    lines
        .filter_map(|line| line.strip_prefix(verdict))
        .map(str::trim_start)
        .collect()
}

#[test]
fn without_privileges_everything_is_refused_in_one_line() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    let config = prepare(host);
    host.run(&["chmod", "755", "/run"]); // as everywhere
    let before = host.snapshot();
    let check = as_nobody(host, &["check", "--config", &config]);
    println!("{}", text(&check.stdout));
    assert_eq!(check.status.code(), Some(1));
    let missing = text(&check.stdout);
    let missing = verdicts(&missing, "MISSING");
    assert_eq!(missing.len(), 2, "{missing:?}");
    for (line, capability) in missing.iter().zip(["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]) {
        assert!(
            line.contains(capability) && line.contains("run as root"),
            "{line}"
        );
    }
    let run = as_nobody(host, &["run", "--config", &config]);
    println!("{}", text(&run.stderr));
    assert_eq!(run.status.code(), Some(1));
    let said = text(&run.stderr);
    let said: Vec<&str> = said.lines().collect();
    let wanted: Vec<String> = missing
        .iter()
        .map(|line| format!("oncache: {line}"))
        .collect();
    assert_eq!(said, wanted, "run says what check says is missing");
    assert_same(&before, &host.snapshot(), "run without privileges");

    let down = complaint(&["down"], &as_nobody(host, &["down"]));
    println!("{down}");
    assert!(down.contains("root"), "{down}");
    assert_same(&before, &host.snapshot(), "down without privileges");

    host.start();
    host.add_container("web");
    let before = host.snapshot();
    for arguments in [
        &["status"][..],
        &["container", "list"],
        &["container", "del", "web"],
        &["cache", "flush"],
        &["down"],
    ] {
        let line = complaint(arguments, &as_nobody(host, arguments));
        println!("{line}");
        assert!(
            line.contains("/run/oncache/oncache.sock")
                && line.contains("run as root or join group oncache"),
            "{line}"
        );
    }
    assert_same(&before, &host.snapshot(), "others' commands");
    assert!(host.daemon_pid().is_some());
}

#[test]
fn without_nft_nothing_is_begun() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    let config = prepare(host);
    let before = host.snapshot();
    for command in ["check", "run"] {
        let mut poor = host.command(BINARY);
        poor.env("PATH", "/run/testbed")
            .args([command, "--config", &config]);
        let output = output_within(poor, Duration::from_secs(30)).expect("it ends");
        let said = text(&[output.stdout, output.stderr].concat());
        println!("{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
        let line = said.lines().find(|line| line.contains("nft: "));
        assert!(
            line.is_some_and(|line| line.contains("install nftables")),
            "{said}"
        );
        assert_same(&before, &host.snapshot(), command);
    }
}

/// Takes `damage` away from alpha and asserts that `check` warns by `said` and passes.
fn check_warns(host: &Host, said: &[&str]) {
    let config = prepare(host);
    let checked = host.oncache_ok(&["check", "--config", &config]);
    println!("{checked}");
    let warnings = verdicts(&checked, "warning");
    let line = warnings.iter().find(|line| line.starts_with(said[0]));
    let line = line.unwrap_or_else(|| panic!("no warning of {}: {checked}", said[0]));
    for words in said {
        assert!(line.contains(words), "{words}: {line}");
    }
}

#[test]
fn without_a_bpffs_the_slow_path_carries_everything() {
    let lab = Lab::two_hosts(ONCACHE);
    let (alpha, beta) = (lab.alpha(), lab.beta());
    alpha.run(&["umount", "/sys/fs/bpf"]);
    check_warns(
        alpha,
        &[
            "bpffs: not mounted",
            "no fast path",
            "mount -t bpf bpf /sys/fs/bpf",
        ],
    );
    let before = alpha.snapshot();
    lab.start();
    let client = alpha.add_container("client");
    let server = beta.add_container("server");
    let report = traffic::transfer(&client, &server, 0, 10_000_000, traffic::Direction::Both);
    println!("{report}");
    assert!(report.intact(), "{report}");
    let shown = alpha.status();
    assert!(shown["cache"].is_null(), "{shown}");
    let warnings = shown["warnings"].to_string();
    println!("{warnings}");
    assert!(
        warnings.contains("bpffs: not mounted") && warnings.contains("the overlay runs without"),
        "{warnings}"
    );
    let line = alpha.refused(&["cache", "list"]);
    println!("{line}");
    assert!(
        line.contains("there is no fast path") && line.contains("mount -t bpf"),
        "{line}"
    );
    assert!(alpha.oncache_ok(&["status"]).contains("fast path off"));

    // What was lacking is mended, and the daemon told.
    alpha.run(&["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"]);
    alpha.signal(Signal::SIGHUP);
    assert!(alpha.wait_notified("READY=1", 2, PATIENCE));
    let took = until_fast([alpha, beta], &client, &server);
    println!("fast path after {took:?}");
    alpha.oncache_ok(&["down"]);
    // The kernel puts files of its own into a fresh bpffs.
    let after = alpha.snapshot();
    let pins = after.section("pin");
    assert!(!pins.iter().any(|pin| pin.contains("oncache")), "{pins:?}");
    assert_same(&before.without("pin"), &after.without("pin"), "after down");
}

#[test]
fn without_btf_the_fast_path_is_warned_about_and_works() {
    let lab = Lab::two_hosts(ONCACHE);
    let (alpha, beta) = (lab.alpha(), lab.beta());
    alpha.run(&["mount", "-t", "tmpfs", "tmpfs", "/sys/kernel/btf"]);
    check_warns(
        alpha,
        &[
            "kernel BTF: no /sys/kernel/btf/vmlinux",
            "CONFIG_DEBUG_INFO_BTF=y",
        ],
    );
    lab.start();
    let warnings = alpha.status()["warnings"].to_string();
    println!("{warnings}");
    assert!(warnings.contains("kernel BTF"), "{warnings}");
    assert!(alpha.log().contains("kernel BTF"));
    // The programs read nothing of the kernel's that would have to be fitted.
    let client = alpha.add_container("client");
    let server = beta.add_container("server");
    let took = until_fast([alpha, beta], &client, &server);
    println!("fast path after {took:?}");
}

#[test]
fn without_netkit_who_asks_for_it_is_told_and_gets_no_other_device() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    let there = host.output(&["ip", "link", "add", "probe", "type", "netkit"]);
    if there.status.success() {
        host.run(&["ip", "link", "del", "probe"]);
        println!("this kernel has netkit: vmtests/netkit.py says the rest");
    }
    let netkit = host
        .default_config()
        .extra("[container]\ndevice = \"netkit\"");
    host.write_config(&netkit.to_string());
    let config = host.config_path().display().to_string();
    let checked = host.oncache_ok(&["check", "--config", &config]);
    println!("{checked}");
    let warnings = verdicts(&checked, "warning");
    let warned = warnings.iter().any(|line| {
        line.starts_with("netkit: this kernel has none") && line.contains("container.device")
    });
    assert_eq!(warned, !there.status.success(), "{checked}");
    host.start();
    if there.status.success() {
        host.oncache_ok(&["container", "add", "web"]);
        let link = host.run(&["ip", "-d", "link", "show", "onc-web"]);
        assert!(link.contains("netkit"), "{link}");
        return;
    }
    let warnings = host.status()["warnings"].to_string();
    assert!(
        warnings.contains("netkit: this kernel has none"),
        "{warnings}"
    );
    let before = host.snapshot();
    let line = host.refused(&["container", "add", "web"]);
    println!("{line}");
    assert!(
        line.contains("container web: this kernel has no netkit devices")
            && line.contains("\"auto\""),
        "{line}"
    );
    assert_same(&before, &host.snapshot(), "after a container was refused");

    // As the line says.
    let auto = host
        .default_config()
        .extra("[container]\ndevice = \"auto\"");
    host.write_config(&auto.to_string());
    host.signal(Signal::SIGHUP);
    assert!(host.wait_notified("READY=1", 2, PATIENCE));
    host.add_container("web");
    let link = host.run(&["ip", "-d", "link", "show", "onc-web"]);
    assert!(link.contains("veth"), "{link}");
}
