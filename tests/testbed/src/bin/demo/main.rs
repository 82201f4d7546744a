//! Shows what oncache does: real traffic between containers of two hosts, by the plain overlay and
//! by the fast path in turns, what each path carried, and what the caches hold.
//!
//! `demo [PATH OF ONCACHE]`; by default the `oncache` beside this program. Needs root. Hosts,
//! containers and daemons end with this program, however it ends.

mod figures;
mod packets;
mod paths;
mod workload;

use std::{
    env,
    fs::read_to_string,
    io::{self, Write as _},
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use figures::{Series, grouped, table};
use oncache_testbed::{Lab, UNDERLAY, traffic::Rounds};
use packets::Packets;
use paths::Path;
use workload::{Containers, Workload};

/// How often each workload runs on each path. Odd, so that the median is one of the runs.
const ROUNDS: usize = 5;

/// How long each run takes.
const RUN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    // The test bed fails by panicking; to somebody who watches a demo that is an error like others.
    static PANIC: Mutex<Option<String>> = Mutex::new(None);
    panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| Some((*payload.downcast_ref::<&str>()?).to_owned()));
        if let (Ok(mut first), Some(text)) = (PANIC.lock(), text) {
            // A later panic follows from the first.
            first.get_or_insert(text);
        }
    }));
    let outcome = panic::catch_unwind(AssertUnwindSafe(demonstrate));
    let failure = match outcome {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure,
        Err(_) => {
            let text = PANIC.lock().ok().and_then(|mut text| text.take());
            text.unwrap_or_else(|| "a panic without a text".to_owned())
        }
    };
    // Where it ends with a log, the log's last line is the reason.
    let mut lines = failure.lines().filter(|line| !line.trim().is_empty());
    let what = lines.next().unwrap_or_default();
    let what = what.trim_end_matches("; the end of its log:");
    let reason = lines.next_back().map(|line| format!(": {}", line.trim()));
    // Perhaps in the middle of a line of results.
    eprintln!("\ndemo: {what}{}", reason.unwrap_or_default());
    ExitCode::FAILURE
}

fn demonstrate() -> Result<(), String> {
    let started = Instant::now();
    let oncache = prerequisites()?;
    let lab = Lab::two_hosts(oncache);
    for host in lab.all() {
        host.write_config(&Path::Plain.config(host));
        // What a host that forwards has; without it every status would warn.
        host.set_sysctl(&format!("net.ipv4.conf.{UNDERLAY}.forwarding"), "1");
    }
    lab.start();
    let containers = Containers::new(&lab);
    introduce(&lab, &containers);

    let measured = measure(&lab, &containers)?;
    compare(&measured);
    count(&measured);
    look_inside(&lab, &containers)?;
    println!(
        "\nAll of it took {:.0} s. Nothing is left: hosts and containers end with this program.",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Checks what would otherwise fail in the middle; returns the path of the binary to show.
fn prerequisites() -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("this needs root, to make network namespaces".to_owned());
    }
    let iperf3 = Command::new("iperf3")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if let Err(error) = iperf3 {
        return Err(format!(
            "cannot run iperf3: {error}; run `make setup` or install it"
        ));
    }
    let beside = || env::current_exe().map(|demo| demo.with_file_name("oncache"));
    let oncache = match env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => beside().map_err(|error| format!("where is this program? {error}"))?,
    };
    if !oncache.is_file() {
        return Err(format!("no {}; run `make build`", oncache.display()));
    }
    Ok(oncache)
}

fn introduce(lab: &Lab, containers: &Containers) {
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    println!("oncache between two hosts, as a plain overlay and with its caches\n");
    for host in lab.all() {
        let on_host = containers.all().filter(|one| one.host == host.name);
        let list: Vec<String> = on_host
            .map(|one| format!("{} {}", one.name, one.ip))
            .collect();
        println!(
            "  host {:<6}{}   containers {}",
            host.name,
            host.address(),
            list.join(", ")
        );
    }
    println!(
        "\nLinux {}, {cpus} CPUs. Hosts and containers are network namespaces of this machine, the\n\
         wire between the hosts is a veth pair. The daemons are told to switch the caches off and on\n\
         in turns; each workload runs {ROUNDS} times on each path, {} s each time.\n",
        kernel.trim(),
        RUN.as_secs(),
    );
}

/// What came of one workload on one path.
struct Measured {
    workload: Workload,
    values: [Series; 2],
    packets: [Packets; 2],
}

fn measure(lab: &Lab, containers: &Containers) -> Result<Vec<Measured>, String> {
    let mut all: Vec<Measured> = Workload::ALL
        .into_iter()
        .map(|workload| Measured {
            workload,
            values: Default::default(),
            packets: Default::default(),
        })
        .collect();
    let heads = |of: fn(Workload) -> &'static str| {
        all.iter()
            .map(|one| format!("{:>15}", of(one.workload)))
            .collect::<String>()
    };
    println!("  {:<22}{}", "", heads(Workload::short));
    println!("  {:<22}{}", "", heads(Workload::unit));
    for round in 1..=ROUNDS {
        for path in Path::BOTH {
            path.take(lab)?;
            let head = format!("round {round}: {path}");
            show(&format!("  {head:<22}"))?;
            for Measured {
                workload,
                values,
                packets,
            } in &mut all
            {
                let before = Packets::of(lab, path)?;
                let value = workload.run(containers, RUN);
                let value = value.map_err(|error| format!("{path}, {workload}: {error}"))?;
                packets[path as usize].add(&before, &Packets::of(lab, path)?);
                values[path as usize].push(value);
                show(&format!("{:>15}", workload.format(value)))?;
            }
            println!();
        }
    }
    Ok(all)
}

/// Prints what belongs to an unfinished line.
fn show(text: &str) -> Result<(), String> {
    print!("{text}");
    let flushed = io::stdout().flush();
    flushed.map_err(|error| format!("write to standard output: {error}"))
}

fn compare(measured: &[Measured]) {
    println!(
        "\nMedian of {ROUNDS} runs of {} s each (lowest to highest); RATIO is that of the medians. More is\n\
         better. The UDP stream is sent without a limit; what counts is what arrives.\n",
        RUN.as_secs()
    );
    let mut rows = vec![["WORKLOAD", "", "PLAIN OVERLAY", "ONCACHE", "RATIO"].map(str::to_owned)];
    for one in measured {
        let cell = |path: Path| {
            let series = &one.values[path as usize];
            let [low, median, high] = series.spread().map(|value| one.workload.format(value));
            format!("{median} ({low} to {high})")
        };
        let median = |path: Path| one.values[path as usize].spread()[1];
        let ratio = median(Path::Cached) / median(Path::Plain);
        rows.push([
            one.workload.to_string(),
            one.workload.unit().to_owned(),
            cell(Path::Plain),
            cell(Path::Cached),
            format!("{ratio:.2}"),
        ]);
    }
    print!("{}", table(&rows, 2));
}

fn count(measured: &[Measured]) {
    println!(
        "\nPackets carried in all these runs, by both hosts together. OUT is from container to NIC, IN from\n\
         NIC to container; an aggregate (GSO, GRO) counts as one packet. PLAIN: the plain overlay, by the\n\
         counters of its VXLAN device. FAST and SLOW: with oncache, by its own counters; the first packets\n\
         of a flow, SYN and FIN always take the slow path.\n"
    );
    let heads = [
        "WORKLOAD",
        "PLAIN OUT",
        "PLAIN IN",
        "FAST OUT",
        "SLOW OUT",
        "FAST IN",
        "SLOW IN",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    for one in measured {
        let [plain, cached] = &one.packets;
        rows.push([
            one.workload.to_string(),
            grouped(plain.vxlan_out),
            grouped(plain.vxlan_in),
            grouped(cached.egress_hits),
            grouped(cached.egress_misses),
            grouped(cached.ingress_hits),
            grouped(cached.ingress_misses),
        ]);
    }
    print!("{}", table(&rows, 1));
}

/// Shows the caches while flows are alive: the end of a connection takes it out of them.
fn look_inside(lab: &Lab, containers: &Containers) -> Result<(), String> {
    let flows = Rounds::lasting(Duration::from_millis(1500));
    let [(a1, b1), (a2, b2)] = &containers.pairs;
    let alpha = lab.alpha();
    println!(
        "\nWhile {} and {} exchange requests and responses over TCP, and {} and {} over UDP, after a flush:",
        a1.name, b1.name, a2.name, b2.name
    );
    // What is left of the runs above would hide the living flows.
    alpha.oncache_ok(&["cache", "flush"]);
    let outputs = thread::scope(|scope| {
        scope.spawn(|| flows.tcp(a1, b1, 7000));
        scope.spawn(|| flows.udp(a2, b2, 7000));
        thread::sleep(Duration::from_millis(700));
        ["cache list", "status"].map(|command| {
            let arguments: Vec<&str> = command.split(' ').collect();
            (command, alpha.oncache(&arguments))
        })
    });
    for (command, output) in outputs {
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("alpha: oncache {command}: {}", said.trim()));
        }
        println!("\nalpha$ oncache {command}");
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            println!("{}", format!("  {line}").trim_end());
        }
    }
    Ok(())
}
