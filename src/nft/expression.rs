//! Values, and where nft finds them in a packet or beside it.

use std::{fmt, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

/// A value, or where nft finds one: nft(8), "Expressions".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression(Value);

impl Expression {
    /// As nft takes it in.
    #[must_use]
    pub const fn json(&self) -> &Value {
        &self.0
    }

    pub(super) const fn of(json: Value) -> Self {
        Self(json)
    }
}

/// A concatenation shows as the list of its parts.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.get("concat").unwrap_or(&self.0).fmt(f)
    }
}

impl From<&str> for Expression {
    fn from(text: &str) -> Self {
        Self(json!(text))
    }
}

impl From<String> for Expression {
    fn from(text: String) -> Self {
        Self(json!(text))
    }
}

impl From<u16> for Expression {
    fn from(number: u16) -> Self {
        Self(json!(number))
    }
}

impl From<u32> for Expression {
    fn from(number: u32) -> Self {
        Self(json!(number))
    }
}

impl From<Ipv4Addr> for Expression {
    fn from(address: Ipv4Addr) -> Self {
        Self(json!(address.to_string()))
    }
}

/// A net of one address is that address.
impl From<Ipv4Net> for Expression {
    fn from(net: Ipv4Net) -> Self {
        let (address, length) = (net.network(), net.prefix_len());
        if length == 32 {
            return address.into();
        }
        Self(json!({ "prefix": { "addr": address.to_string(), "len": length } }))
    }
}

/// What the kernel notes beside a packet, such as `iifname` or `mark`.
#[must_use]
pub fn meta(key: &str) -> Expression {
    Expression(json!({ "meta": { "key": key } }))
}

/// A field of a header.
#[must_use]
pub fn payload(protocol: &str, field: &str) -> Expression {
    Expression(json!({ "payload": { "protocol": protocol, "field": field } }))
}

/// Bits of a packet from `offset` of a header on: `ll`, `nh` or `th`.
#[must_use]
pub fn raw_payload(header: &str, offset: u32, bits: u32) -> Expression {
    Expression(json!({ "payload": { "base": header, "offset": offset, "len": bits } }))
}

/// What conntrack has of the packet's flow.
#[must_use]
pub fn ct(key: &str) -> Expression {
    Expression(json!({ "ct": { "key": key } }))
}

/// What conntrack has of one direction of the packet's flow: `original` or `reply`.
#[must_use]
pub fn ct_of(direction: &str, key: &str) -> Expression {
    Expression(json!({ "ct": { "key": key, "dir": direction } }))
}

/// Several, one behind the other, as sets have them.
pub fn concat<E: Into<Expression>>(parts: impl IntoIterator<Item = E>) -> Expression {
    Expression(json!({ "concat": values(parts) }))
}

/// A set without a name.
pub fn set_of<E: Into<Expression>>(elements: impl IntoIterator<Item = E>) -> Expression {
    Expression(json!({ "set": values(elements) }))
}

/// Any of these. One is cheaper to compare than to look up, and there is no empty set.
pub fn any_of<E: Into<Expression>>(elements: impl IntoIterator<Item = E>) -> Option<Expression> {
    let elements = elements.into_iter().map(Into::into);
    let mut elements: Vec<Expression> = elements.collect();
    match elements.len() {
        0 | 1 => elements.pop(),
        _ => Some(set_of(elements)),
    }
}

/// Several bits or states.
pub fn flags<E: Into<Expression>>(flags: impl IntoIterator<Item = E>) -> Expression {
    Expression(values(flags))
}

/// From `first` to `last`.
pub fn range(first: impl Into<Expression>, last: impl Into<Expression>) -> Expression {
    Expression(json!({ "range": [first.into().0, last.into().0] }))
}

/// The elements of a set of the table.
#[must_use]
pub fn elements_of(set: &str) -> Expression {
    Expression(json!(format!("@{set}")))
}

/// The bits that are in both.
pub fn and(one: impl Into<Expression>, other: impl Into<Expression>) -> Expression {
    Expression(json!({ "&": [one.into().0, other.into().0] }))
}

/// The bits that are in one of both.
pub fn or(one: impl Into<Expression>, other: impl Into<Expression>) -> Expression {
    Expression(json!({ "|": [one.into().0, other.into().0] }))
}

fn values<E: Into<Expression>>(expressions: impl IntoIterator<Item = E>) -> Value {
    expressions.into_iter().map(|it| it.into().0).collect()
}
