//! `[[policy]]`: the rules of a configuration file, or of a file for `oncache policy apply`.

use std::path::Path;

use toml::de::DeValue;

use super::document::with_document;
use super::fault::{ConfigErrors, Fault, Faults, refuse};
use super::rule::{Action, Party, PortRange, Protocol, Rule, RuleError, check_ports};
use super::table::Table;

impl From<RuleError> for Fault {
    fn from(error: RuleError) -> Self {
        refuse(error.why, error.remedy)
    }
}

/// Reads the file at `path`, which may hold nothing but `[[policy]]`.
///
/// # Errors
/// Every fault of the file, or the one that it cannot be read.
pub fn read_policy(path: &Path) -> Result<Vec<Rule>, ConfigErrors> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse_policy(path, &text),
        Err(error) => {
            let mut faults = Faults::new(path);
            faults.file(&refuse(
                format!("cannot read the rules: {error}"),
                "give a readable UTF-8 file of [[policy]] tables",
            ));
            Err(faults.into_errors())
        }
    }
}

/// Parses `text`, the contents of the file at `path`.
///
/// # Errors
/// Every fault found.
pub fn parse_policy(path: &Path, text: &str) -> Result<Vec<Rule>, ConfigErrors> {
    with_document(path, text, |file, faults| {
        file.refuse_unknown(&["policy"], faults);
        Some(read_rules(file, faults))
    })
}

/// The rules of a file, in its order; the faulty ones are missing.
pub(super) fn read_rules(file: &Table<'_>, faults: &mut Faults) -> Vec<Rule> {
    let tables = file.tables("policy", faults);
    let rules = tables.iter().map(|table| read_rule(table, faults));
    rules.collect::<Vec<_>>().into_iter().flatten().collect()
}

fn read_rule(table: &Table<'_>, faults: &mut Faults) -> Option<Rule> {
    table.refuse_unknown(&["action", "from", "to", "protocol", "ports"], faults);
    let action = table.required("action", "action = \"deny\"", action, faults);
    let from = table.optional("from", party, faults);
    let to = table.optional("to", party, faults);
    let named = table.optional("protocol", protocol, faults);
    let ports = table.list("ports", "ports = [5432, \"8000-8100\"]", port_range, faults);
    let protocol = named.map(|at| at.value);
    if let Some(ports) = &ports {
        // A protocol that could not be read has its own fault.
        if (protocol.is_some() || !table.has("protocol"))
            && let Err(error) = check_ports(protocol)
        {
            faults.key(ports.line, "policy.ports", &error.into());
        }
        if ports.value.is_empty() {
            let fault = refuse(
                "an empty list matches nothing",
                "name a port, or remove the line for all ports",
            );
            faults.key(ports.line, "policy.ports", &fault);
        }
    }
    Some(Rule {
        action: action?.value,
        from: from.map(|at| at.value),
        to: to.map(|at| at.value),
        protocol,
        ports: ports.map(|at| at.value).unwrap_or_default(),
    })
}

fn action(value: &DeValue<'_>) -> Result<Action, Fault> {
    match value.as_str() {
        Some("allow") => Ok(Action::Allow),
        Some("deny") => Ok(Action::Deny),
        _ => Err(refuse("no action", "write \"allow\" or \"deny\"")),
    }
}

fn party(value: &DeValue<'_>) -> Result<Party, Fault> {
    let text = value.as_str().ok_or_else(|| {
        refuse(
            "must be a string",
            "put a network or a container's name between quotes",
        )
    })?;
    Ok(text.parse::<Party>()?)
}

fn protocol(value: &DeValue<'_>) -> Result<Protocol, Fault> {
    match value.as_str() {
        Some("tcp") => Ok(Protocol::Tcp),
        Some("udp") => Ok(Protocol::Udp),
        Some("icmp") => Ok(Protocol::Icmp),
        _ => Err(refuse(
            "no protocol that rules know",
            "write \"tcp\", \"udp\" or \"icmp\", or remove the line for all",
        )),
    }
}

fn port_range(value: &DeValue<'_>) -> Result<PortRange, Fault> {
    let text = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
        _ => String::new(),
    };
    Ok(text.parse::<PortRange>()?)
}
