//! Stands in for `oncache` in the test bed's own tests: it speaks the part of the command line that
//! the test bed calls, and does next to nothing.

use std::{env, fs, os::unix::net::UnixDatagram, process::ExitCode};

use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["run", "--config", file] => run(file),
        ["container", "add", name] => {
            let made = std::process::Command::new("ip")
                .args(["netns", "add", name])
                .status();
            if made.is_ok_and(|status| status.success()) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        ["container", "list", "--json"] => {
            let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
            let rows = entries.map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                serde_json::json!({
                    "name": name, "ip": "10.42.1.2", "netns": entry.path(), "more": 1
                })
            });
            println!("{}", serde_json::Value::Array(rows.collect()));
            ExitCode::SUCCESS
        }
        other => {
            eprintln!("oncache-stand-in: {other:?} is not understood");
            ExitCode::from(2)
        }
    }
}

fn run(file: &str) -> ExitCode {
    let config = fs::read_to_string(file).unwrap_or_default();
    if config.contains("refuse-me") {
        eprintln!("oncache-stand-in: {file}: refuse-me is refused");
        return ExitCode::FAILURE;
    }
    let path = env::var("NOTIFY_SOCKET").expect("a notify socket");
    let socket = UnixDatagram::unbound().expect("a socket");
    let tell = |message: &str| {
        socket
            .send_to(message.as_bytes(), &path)
            .expect("a listener")
    };
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals.thread_block().expect("signals to wait for");
    println!("serving {file}");
    tell("READY=1\nSTATUS=serving");
    loop {
        match signals.wait() {
            Ok(Signal::SIGHUP) => {
                tell("RELOADING=1");
                tell("READY=1");
            }
            _ => {
                println!("stopping");
                tell("STOPPING=1");
                return ExitCode::SUCCESS;
            }
        }
    }
}
