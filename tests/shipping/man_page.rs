//! `docs/oncache.8` is what the command line says of itself. `ONCACHE_WRITE_MAN=1` rewrites it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{env, fs, io::Write as _, path::Path};

use clap::{Command, CommandFactory as _};
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use oncache::{cli::Arguments, control, daemon};

/// Options that every command has and that are explained once.
const COMMON: [&str; 3] = ["socket", "state", "help"];

/// The page, in roff.
fn page() -> String {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let mut page = Vec::new();
    // No version and no date: a page that differs at every release tells nothing.
    let man = Man::new(command.clone())
        .section("8")
        .source("oncache")
        .manual("oncache");
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    section(&mut page, "COMMANDS");
    describe(&command, "oncache", &mut page);
    files(&mut page);
    section(&mut page, "EXIT STATUS");
    man.render_extra_section(&mut page).unwrap();
    section(&mut page, "SEE ALSO");
    let mut related = Roff::new();
    related.text([bold("nft"), roman("(8), "), bold("ip-netns"), roman("(8)")]);
    related.to_writer(&mut page).unwrap();
    tidy(&String::from_utf8(page).unwrap())
}

/// Every part brings the same two lines of preamble; once is enough. The extra section is the exit
/// status, which has its heading already.
fn tidy(page: &str) -> String {
    let preamble = |line: &str| line.contains(".ds Aq ");
    let lines = page.lines().enumerate();
    let kept: Vec<&str> = lines
        .filter(|(number, line)| *number < 2 || !(preamble(line) || *line == ".SH EXTRA"))
        .map(|(_, line)| line)
        .collect();
    format!("{}\n", kept.join("\n"))
}

/// The commands below `command`, those that do something.
fn describe(command: &Command, path: &str, page: &mut Vec<u8>) {
    for below in command.get_subcommands() {
        let path = format!("{path} {}", below.get_name());
        if below.has_subcommands() {
            describe(below, &path, page);
            continue;
        }
        let mut below = below.clone();
        for common in COMMON {
            below = below.mut_arg(common, |argument| argument.hide(true));
        }
        let mut heading = Roff::new();
        heading.control("SS", [usage(&below, &path).as_str()]);
        heading.to_writer(page).unwrap();
        let man = Man::new(below);
        page.write_all(&without_heading(|part| {
            man.render_description_section(part)
        }))
        .unwrap();
        page.write_all(&without_heading(|part| man.render_options_section(part)))
            .unwrap();
    }
}

/// How a command is called: its operands after its path.
fn usage(command: &Command, path: &str) -> String {
    let mut usage = path.to_owned();
    let shown = |argument: &&clap::Arg| !argument.is_hide_set();
    if command.get_opts().filter(shown).count() > 0 || command.get_arguments().any(is_flag) {
        usage.push_str(" [OPTIONS]");
    }
    for operand in command.get_positionals() {
        let name = operand.get_id().as_str().to_uppercase();
        if operand.is_required_set() {
            usage.push_str(&format!(" {name}"));
        } else {
            usage.push_str(&format!(" [{name}]"));
        }
    }
    usage
}

fn is_flag(argument: &clap::Arg) -> bool {
    !argument.is_hide_set() && !argument.is_positional() && !argument.get_action().takes_values()
}

/// A section of `clap_mangen`'s without its `.SH` line.
fn without_heading(render: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> Vec<u8> {
    let mut part = Vec::new();
    render(&mut part).unwrap();
    let text = String::from_utf8(part).unwrap();
    let kept: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with(".SH"))
        .collect();
    format!("{}\n", kept.join("\n")).into_bytes()
}

fn section(page: &mut Vec<u8>, name: &str) {
    let mut heading = Roff::new();
    heading.control("SH", [name]);
    heading.to_writer(page).unwrap();
}

fn files(page: &mut Vec<u8>) {
    let files = [
        (daemon::CONFIG, "the configuration"),
        (control::SOCKET, "the daemon's socket"),
        (daemon::STATE, "the daemon's state"),
        (
            "/run/netns",
            "the namespaces of containers added without --netns",
        ),
        (
            oncache::datapath::PIN_ROOT,
            "pinned programs' links and maps",
        ),
    ];
    section(page, "FILES");
    for (file, meaning) in files {
        let mut entry = Roff::new();
        entry.control("TP", []);
        entry.text([bold(file)]);
        entry.text([roman(meaning)]);
        entry.to_writer(page).unwrap();
    }
}

#[test]
fn the_manual_page_is_current() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/oncache.8");
    let page = page();
    if env::var_os("ONCACHE_WRITE_MAN").is_some() {
        fs::write(&file, &page).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == page,
        "docs/oncache.8 is not what the command line says; ONCACHE_WRITE_MAN=1 cargo test --test shipping man_page:: rewrites it"
    );
}
