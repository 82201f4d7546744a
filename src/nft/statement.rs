//! What a rule asks of a packet, and what it does with it.

use serde_json::{Value, json};

use super::expression::{Expression, elements_of};

/// A part of a rule: nft(8), "Statements". The first match that fails ends the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement(Value);

impl Statement {
    /// As nft takes it in.
    #[must_use]
    pub const fn json(&self) -> &Value {
        &self.0
    }
}

/// Goes on if both are the same, or if the left is in the set that the right is.
pub fn equal(left: impl Into<Expression>, right: impl Into<Expression>) -> Statement {
    compare("==", &left.into(), &right.into())
}

/// Goes on if [`equal`] would not.
pub fn unequal(left: impl Into<Expression>, right: impl Into<Expression>) -> Statement {
    compare("!=", &left.into(), &right.into())
}

/// Goes on if any bit of the right is set in the left.
pub fn has(left: impl Into<Expression>, right: impl Into<Expression>) -> Statement {
    compare("in", &left.into(), &right.into())
}

/// Goes on if no bit of the right is set in the left.
pub fn lacks(left: impl Into<Expression>, right: impl Into<Expression>) -> Statement {
    compare("!", &left.into(), &right.into())
}

fn compare(operator: &str, left: &Expression, right: &Expression) -> Statement {
    Statement(json!({ "match": { "op": operator, "left": left.json(), "right": right.json() } }))
}

/// The packet has passed this hook's chain.
#[must_use]
pub fn accept() -> Statement {
    Statement(json!({ "accept": null }))
}

/// The packet goes no further.
#[must_use]
pub fn drop() -> Statement {
    Statement(json!({ "drop": null }))
}

/// Back to the chain that jumped to this one; of a hook's own chain, its end.
#[must_use]
pub fn go_back() -> Statement {
    Statement(json!({ "return": null }))
}

/// To another chain, and back behind this rule.
#[must_use]
pub fn jump(chain: &str) -> Statement {
    Statement(json!({ "jump": { "target": chain } }))
}

/// To another chain, and from there to where this chain was jumped to from.
#[must_use]
pub fn goto(chain: &str) -> Statement {
    Statement(json!({ "goto": { "target": chain } }))
}

/// The verdict that belongs to a value; none of them, none.
pub fn choose<'v>(
    value: impl Into<Expression>,
    verdicts: impl IntoIterator<Item = (&'v str, Statement)>,
) -> Statement {
    let verdicts = verdicts.into_iter();
    let verdicts: Vec<Value> = verdicts
        .map(|(it, verdict)| json!([it, verdict.0]))
        .collect();
    let key = value.into();
    Statement(json!({ "vmap": { "key": key.json(), "data": { "set": verdicts } } }))
}

/// Counts in the rule itself: as long as the rule is.
#[must_use]
pub fn count() -> Statement {
    Statement(json!({ "counter": null }))
}

/// Counts in a counter of the table.
#[must_use]
pub fn count_in(counter: &str) -> Statement {
    Statement(json!({ "counter": counter }))
}

/// Sets what the kernel keeps beside a packet, or conntrack of its flow.
pub fn assign(key: impl Into<Expression>, value: impl Into<Expression>) -> Statement {
    let (key, value) = (key.into(), value.into());
    Statement(json!({ "mangle": { "key": key.json(), "value": value.json() } }))
}

/// Gives the packet the source address of the device that it leaves by.
#[must_use]
pub fn masquerade() -> Statement {
    Statement(json!({ "masquerade": null }))
}

/// Puts an element into a set for so many seconds, unless it is there. The rule ends where the set is full.
pub fn add_to(set: &str, element: impl Into<Expression>, seconds: u32) -> Statement {
    put("add", set, &element.into(), seconds)
}

/// As [`add_to`], and an element that is there gets its time anew.
pub fn renew_in(set: &str, element: impl Into<Expression>, seconds: u32) -> Statement {
    put("update", set, &element.into(), seconds)
}

fn put(operation: &str, set: &str, element: &Expression, seconds: u32) -> Statement {
    let element = json!({ "elem": { "val": element.json(), "timeout": seconds } });
    Statement(
        json!({ "set": { "op": operation, "elem": element, "set": elements_of(set).json() } }),
    )
}
