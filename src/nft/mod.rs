//! The only place that speaks nft.
//!
//! A [`Table`] is what the kernel should have, said in a small vocabulary of [`expression`]s and [`statement`]s.
//! [`ListedTable`] is what nft lists of it. The [`difference`](mod@difference) of the two is a [`Transaction`], which
//! [`run`] has nft do: all of it or nothing. [`blame`] finds which part of it nft refuses.
//!
//! Nothing here knows what the tables are for. What is built is the JSON of libnftables-json(5), and nft runs as a
//! program (docs/adr/008, docs/adr/049).

pub mod blame;
mod complaint;
pub mod difference;
pub mod expression;
pub mod listed;
pub mod run;
pub mod statement;
pub mod table;

use std::io;

pub use difference::{Anew, Difference, difference};
pub use expression::Expression;
pub use listed::ListedTable;
pub use run::Transaction;
pub use statement::Statement;
pub use table::{Family, Hook, Table, TableName};

/// nft could not be run, or said no. The message is one line.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// nft could not be run.
    #[error("run nft: {0}; install the package nftables")]
    Run(#[from] io::Error),
    /// nft said no: nothing has changed.
    #[error("{operation}: {reason}")]
    Refused {
        /// What was tried, on which table.
        operation: String,
        /// nft's own words.
        reason: String,
    },
    /// nft's output is not what it should be.
    #[error("{operation}: {source}")]
    Listing {
        /// What was tried, on which table.
        operation: String,
        /// What is wrong with the output.
        source: serde_json::Error,
    },
}
