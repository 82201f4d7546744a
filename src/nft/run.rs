//! Running nft: a transaction by its standard input, or a listing.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{NftError, complaint, expression::Expression, listed::ListedTable, table::TableName};

/// Commands that nft does all of, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction(Vec<Value>);

impl Transaction {
    /// Removes a table, whether it is there or not: it is added so that deleting cannot fail.
    #[must_use]
    pub fn removal(table: TableName) -> Self {
        let mut transaction = Self::default();
        transaction.push("add", table.json());
        transaction.push("delete", table.json());
        transaction
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Does what `other` does after this.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Puts elements into a set.
    pub fn add_elements<'e>(
        &mut self,
        table: TableName,
        set: &str,
        elements: impl IntoIterator<Item = &'e Expression>,
    ) {
        self.push_elements("add", table, set, elements);
    }

    /// Takes elements out of a set; nft refuses if one is not in it.
    pub fn remove_elements<'e>(
        &mut self,
        table: TableName,
        set: &str,
        elements: impl IntoIterator<Item = &'e Expression>,
    ) {
        self.push_elements("delete", table, set, elements);
    }

    /// Puts an element into a set for so many seconds.
    pub fn add_for(&mut self, table: TableName, set: &str, element: &Expression, seconds: u32) {
        let element = json!({ "elem": { "val": element.json(), "timeout": seconds } });
        self.add_elements(table, set, [&Expression::of(element)]);
    }

    pub(super) fn add_element(&mut self, table: TableName, set: &str, element: &Expression) {
        self.add_elements(table, set, [element]);
    }

    pub(super) fn remove_element(&mut self, table: TableName, set: &str, element: &Expression) {
        self.remove_elements(table, set, [element]);
    }

    fn push_elements<'e>(
        &mut self,
        verb: &str,
        table: TableName,
        set: &str,
        elements: impl IntoIterator<Item = &'e Expression>,
    ) {
        let mut object = table.object("element", set);
        let elements = elements.into_iter().map(Expression::json);
        object["element"]["elem"] = elements.cloned().collect();
        self.push(verb, object);
    }

    pub(super) fn push(&mut self, verb: &str, object: Value) {
        self.0.push(command(verb, object));
    }

    pub(super) fn push_all(&mut self, verb: &str, objects: impl IntoIterator<Item = Value>) {
        let objects = objects.into_iter();
        self.0.extend(objects.map(|object| command(verb, object)));
    }

    #[cfg(test)]
    pub(super) fn commands(&self) -> &[Value] {
        &self.0
    }
}

fn command(verb: &str, object: Value) -> Value {
    Value::from_iter([(verb, object)])
}

/// Does a transaction. `operation` says what it does to which table.
///
/// # Errors
/// [`NftError`]: nothing has changed.
pub async fn apply(transaction: &Transaction, operation: &str) -> Result<(), NftError> {
    transact(&["-j", "-f", "-"], transaction, operation).await
}

/// Asks whether nft and the kernel would do a transaction.
///
/// # Errors
/// [`NftError::Refused`] if not.
pub async fn check(transaction: &Transaction, operation: &str) -> Result<(), NftError> {
    transact(&["--check", "-j", "-f", "-"], transaction, operation).await
}

/// A table with all that is in it; none if it is not there.
///
/// # Errors
/// [`NftError`] when nft can't be run or understood.
pub async fn list(table: TableName) -> Result<Option<ListedTable>, NftError> {
    listing(&["list", "table"], table).await
}

/// As [`list`], without the elements of sets, which may be a hundred thousand flows.
///
/// # Errors
/// As [`list`].
pub async fn list_terse(table: TableName) -> Result<Option<ListedTable>, NftError> {
    listing(&["-t", "list", "table"], table).await
}

/// A table with nothing but its counters; none if it is not there.
///
/// # Errors
/// As [`list`].
pub async fn list_counters(table: TableName) -> Result<Option<ListedTable>, NftError> {
    listing(&["list", "counters", "table"], table).await
}

async fn listing(what: &[&str], table: TableName) -> Result<Option<ListedTable>, NftError> {
    let named = [table.family.name(), table.name];
    match nft(&[&["-j"], what, &named].concat(), "").await? {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(listing) => Ok(Some(ListedTable::of(&listing))),
            Err(source) => Err(NftError::Listing {
                operation: format!("list table {table}"),
                source,
            }),
        },
        // Whatever else keeps it from being listed, replacing it says more.
        Err(_) => Ok(None),
    }
}

async fn transact(
    arguments: &[&str],
    transaction: &Transaction,
    operation: &str,
) -> Result<(), NftError> {
    let input = json!({ "nftables": transaction.0 }).to_string();
    match nft(arguments, &input).await? {
        Ok(_) => Ok(()),
        Err(reason) => Err(NftError::Refused {
            operation: operation.to_owned(),
            reason,
        }),
    }
}

/// Runs nft; what it prints, or what it complains of in one line.
async fn nft(arguments: &[&str], input: &str) -> Result<Result<String, String>, NftError> {
    let mut process = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = process.stdin.take() {
        // nft reads all before it prints anything; if it ends early, its words say why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = process.wait_with_output().await?;
    Ok(if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(complaint::one_line(&String::from_utf8_lossy(
            &output.stderr,
        )))
    })
}
