//! Whatever somebody writes, however long: what is said about it has a sensible length, and still says
//! what is wrong.

use crate::ONCACHE;
use nix::sys::signal::Signal;
use oncache_testbed::{Answer, Host, Lab, PATIENCE};

/// Longer than any line that a person reads.
const LONG: usize = 5_000;
/// The longest line that is one.
const LINE: usize = 1_200;

/// Long texts: one word, many words, quotes and what has to be escaped, no ASCII.
fn texts() -> Vec<String> {
    vec![
        "x".repeat(LONG),
        "two words ".repeat(LONG / 10),
        "\\\"".repeat(LONG / 2),
        "ä".repeat(LONG),
        "9".repeat(LONG),
    ]
}

fn assert_lines(what: &str, text: &str) {
    assert!(!text.trim().is_empty(), "{what}: nothing is said");
    for line in text.lines() {
        let length = line.chars().count();
        let head: String = line.chars().take(200).collect();
        assert!(length <= LINE, "{what}: a line of {length}: {head}");
    }
}

/// Files in which one place is long, from a file that is right.
fn configs(right: &str, text: &str) -> Vec<(String, String)> {
    let values = [
        "name = \"alpha\"",
        "underlay = \"eth1\"",
        "address = \"192.168.50.11\"",
        "subnet = \"10.42.1.0/24\"",
        "network = \"10.42.0.0/16\"",
        "vni = 42",
        "port = 4789",
        "mtu = \"auto\"",
        "name = \"beta\"",
        "address = \"192.168.50.12\"",
        "subnet = \"10.42.2.0/24\"",
        "enabled = true",
        "flows = 65536",
        "lease = \"30s\"",
        "mark_mask = \"0x0fff0000\"",
        "device = \"auto\"",
        "level = \"info\"",
        "action = \"deny\"",
        "from = \"10.42.1.2\"",
        "to = \"web\"",
        "protocol = \"tcp\"",
        "ports = [1]",
    ];
    let mut all = Vec::new();
    for value in values {
        assert!(right.contains(value), "{value} is not in the file");
        let key = value.split(' ').next().expect("a key");
        let with = |wrong: String| right.replacen(value, &wrong, 1);
        all.push((
            format!("{key}, a string"),
            with(format!("{key} = \"{text}\"")),
        ));
        all.push((format!("{key}, bare"), with(format!("{key} = {text}"))));
        all.push((
            format!("{key}, a list"),
            with(format!("{key} = [\"{text}\"]")),
        ));
        all.push((
            format!("{key}, a table"),
            with(format!("{key} = {{ \"{text}\" = 1 }}")),
        ));
        all.push((
            format!("beside {key}"),
            with(format!("\"{text}\" = 1\n{value}")),
        ));
    }
    all.push(("no TOML".into(), format!("{right}\n{text}\n")));
    all.push(("a table".into(), format!("{right}\n[\"{text}\"]\na = 1\n")));
    all.push(("no end".into(), format!("{right}\na = \"{text}\n")));
    all.push(("nothing else".into(), text.to_owned()));
    all
}

fn right(host: &Host) -> String {
    host.default_config()
        .extra(
            "[container]\ndevice = \"auto\"\n[log]\nlevel = \"info\"\n[[policy]]\naction = \"deny\"\n\
             from = \"10.42.1.2\"\nto = \"web\"\nprotocol = \"tcp\"\nports = [1]",
        )
        .to_string()
}

#[test]
fn a_long_value_in_a_file_is_not_repeated_whole() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    let right = right(host);
    let mut tried = 0;
    for text in texts() {
        for (place, config) in configs(&right, &text) {
            host.write_config(&config);
            let path = host.config_path().display().to_string();
            let output = host.oncache(&["check", "--syntax-only", "--config", &path]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{place}: {}", &text[..20]);
            assert_lines(&place, &said);
            tried += 1;
        }
    }
    println!("{tried} files");
    assert!(tried > 500);
}

#[test]
fn a_long_argument_is_not_repeated_whole() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    // Arguments are no longer than a name of a file may be, and longer.
    for text in texts() {
        let path = format!("/run/{text}");
        let deep = format!("/run{}", "/directory".repeat(400));
        let policy = format!(
            "[[policy]]\naction = \"deny\"\nfrom = \"{}\"\n",
            text.replace(['\\', '"'], "q")
        );
        host.write_file("policy.toml", &policy);
        let calls: Vec<Vec<&str>> = vec![
            vec!["container", "add", &text],
            vec!["container", "del", &text],
            vec!["container", "add", "new", "--ifname", &text],
            vec!["container", "add", "new", "--ip", &text],
            vec!["container", "add", "new", "--route", &text],
            vec!["container", "add", "new", "--netns", &path],
            vec!["container", "add", "new", "--netns", &deep],
            vec!["container", "add", "new", "--netns", &text],
            vec!["container", "add", "new", &text],
            vec!["cache", "list", &text],
            vec![&text],
            vec!["status", "--socket", &path],
            vec!["status", "--socket", &deep],
            vec!["down", "--socket", &deep, "--state", &path],
            vec!["check", "--config", &path],
            vec!["check", "--config", &deep],
            vec!["run", "--config", &path],
            vec![
                "run",
                "--config",
                "/run/testbed/config.toml",
                "--mount-namespace",
                &path,
            ],
            vec!["policy", "apply", &path],
            vec!["policy", "apply", "/run/testbed/policy.toml"],
        ];
        for call in calls {
            let output = host.oncache(&call);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{:?}", &call[..2.min(call.len())]);
            let what: Vec<String> = call
                .iter()
                .map(|it| it.chars().take(30).collect())
                .collect();
            assert_lines(&format!("{what:?}"), &said);
        }
    }
    // And in the log, of a reload.
    let before = host.log().len();
    host.write_config(&format!("{}\n{}\n", right(host), "z".repeat(LONG)));
    host.signal(Signal::SIGHUP);
    assert!(host.wait_notified("READY=1", 2, PATIENCE));
    let said = host.log_since(before).join("\n");
    assert!(said.contains("reload refused"), "{said}");
    assert_lines("a reload", &said);
    for letter in host.notifications() {
        assert_lines("the status line", &letter);
    }
}

fn is_refused(answer: &Answer) -> bool {
    (400..500).contains(&answer.status)
}

#[test]
fn a_long_request_is_not_repeated_whole() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    for text in texts() {
        let json = serde_json::to_string(&text).expect("a string");
        let bodies = [
            format!("{{\"name\": {json}}}"),
            format!("{{\"name\": \"new\", {json}: 1}}"),
            format!("{{\"name\": \"new\", \"ip\": {json}}}"),
            format!("{{\"name\": \"new\", \"netns\": {json}}}"),
            format!(
                "{{\"name\": \"new\", \"netns\": \"/run/{}\"}}",
                "a/".repeat(LONG)
            ),
            format!("{{\"name\": \"new\", \"ifname\": {json}}}"),
            format!("{{\"name\": \"new\", \"route\": {json}}}"),
            json.clone(),
            text.clone(),
        ];
        for body in &bodies {
            let answer = host.ask("POST", "/v1/containers", body);
            assert!(
                is_refused(&answer),
                "{}: {}",
                answer.status,
                &answer.body[..answer.body.len().min(300)]
            );
            assert_lines("add a container", &answer.body);
        }
        let rule = |field: &str| {
            let mut fields = vec!["\"action\": \"deny\"".to_owned()];
            fields.push(format!("\"{field}\": {json}"));
            format!("{{\"rules\": [{{{}}}]}}", fields.join(", "))
        };
        for field in ["from", "to", "protocol", "ports", "another"] {
            let answer = host.ask("POST", "/v1/policy", &rule(field));
            assert!(is_refused(&answer), "{field}: {answer:?}");
            assert_lines(field, &answer.body);
        }
        let word = text.replace(|c: char| !c.is_ascii_alphanumeric(), "q");
        for (method, path) in [
            ("DELETE", format!("/v1/containers/{word}")),
            ("DELETE", format!("/v1/containers/%ff{word}")),
            ("GET", format!("/v1/{word}")),
            ("PATCH", format!("/v1/containers/{word}")),
        ] {
            let answer = host.ask(method, &path, "");
            assert!(is_refused(&answer), "{}", answer.status);
            assert_lines("another path", &answer.body);
        }
    }
    assert_lines("the log", &host.log());
}
