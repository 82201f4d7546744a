//! What a host has of oncache's on the bpffs.

use std::collections::BTreeMap;

use oncache::datapath::PIN_ROOT;
use oncache_testbed::Host;

/// Everything pinned, a path a line, sorted.
pub fn pins(host: &Host) -> String {
    host.sh(&format!(
        "cd {PIN_ROOT} 2>/dev/null && find . -mindepth 1 | sort || true"
    ))
}

/// What has to be pinned: links for the underlay and for each container's device, one directory of
/// maps.
pub fn wanted_pins(abi: &str, flows: u32, devices: &[&str]) -> String {
    let maps = format!("./maps/{abi}-{flows}");
    let names = ["CONTAINERS", "COUNTERS", "FLOWS", "PEERS", "SETTINGS"];
    let mut lines = vec!["./links".to_owned(), "./maps".to_owned(), maps.clone()];
    lines.extend(names.iter().map(|name| format!("{maps}/{name}")));
    lines.extend(["egress_init", "ingress"].map(|it| format!("./links/eth1:{it}")));
    for device in devices {
        lines.extend(["egress", "ingress_init"].map(|it| format!("./links/{device}:{it}")));
    }
    lines.sort();
    lines.join("\n") + "\n"
}

/// The programs in the pinned links: `device:program` and the tag of its instructions.
pub fn tags(host: &Host) -> BTreeMap<String, String> {
    let status = host.status();
    let programs = status["cache"]["programs"].as_array().expect("programs");
    let tag = |program: &serde_json::Value| {
        let text = |key: &str| program[key].as_str().expect("a name").to_owned();
        let id = program["program_id"].to_string();
        let shown = host.run(&["bpftool", "-j", "prog", "show", "id", &id]);
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON of bpftool");
        let tag = shown["tag"].as_str().expect("a tag").to_owned();
        (format!("{}:{}", text("device"), text("program")), tag)
    };
    programs.iter().map(tag).collect()
}
