//! Who may use the socket.

use std::process::Output;

use oncache_testbed::{Host, Lab, PATIENCE, complaint, output_within};

use super::wire::SOCKET;
use crate::ONCACHE;

/// Runs `oncache status` as nobody, with or without the group 4242.
fn as_nobody(host: &Host, groups: &str) -> Output {
    let mut command = host.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", groups]);
    command.args(["/run/testbed/oncache", "status"]);
    output_within(command, PATIENCE).expect("setpriv runs")
}

#[test]
fn only_root_and_the_group_are_answered() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    // The build directory may not be open to nobody.
    host.sh(&format!(
        "install -m 755 {ONCACHE} /run/testbed/oncache
         grep -v ^oncache: /etc/group > /run/testbed/group
         mount --bind /run/testbed/group /etc/group"
    ));
    let mode = || {
        let shown = host.run(&["stat", "--format", "%a %u:%g", SOCKET]);
        shown.trim_end().to_owned()
    };
    host.start();
    println!("without a group oncache: {}", mode());
    assert_eq!(mode(), "660 0:0");
    host.stop();

    host.sh("echo oncache:x:4242: >> /run/testbed/group");
    host.start();
    println!("with a group oncache: {}", mode());
    assert_eq!(mode(), "660 0:4242");

    let line = complaint(&["status"], &as_nobody(host, "--clear-groups"));
    println!("{line}");
    let wanted =
        format!("oncache: permission denied on {SOCKET}: run as root or join group oncache");
    assert_eq!(line, wanted);
    let member = as_nobody(host, "--groups=4242");
    let said = String::from_utf8_lossy(&member.stderr);
    assert!(member.status.success(), "a member of the group: {said}");
    assert!(host.oncache(&["status"]).status.success(), "root");
}
