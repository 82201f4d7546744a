//! Which part of a transaction nft refuses.
//!
//! Of JSON nft knows no places, and where the kernel refuses, its errors do not name the rule: so it is found by asking.

use super::{
    NftError,
    run::{self, Transaction},
};

/// What nft refuses of a transaction that has parts.
#[derive(Debug, PartialEq, Eq)]
pub struct Blame {
    /// The part, from 0; none if it is not one of them.
    pub part: Option<usize>,
    /// nft's own words.
    pub reason: String,
}

/// Which of `count` parts nft refuses: the last of the shortest beginning that it refuses. It has refused all of them
/// for `reason`; `beginning` makes the transaction of the first so many.
///
/// # Errors
/// [`NftError`] when nft can't be run.
pub async fn blame(
    count: usize,
    reason: String,
    beginning: impl Fn(usize) -> Transaction,
) -> Result<Blame, NftError> {
    if let Some(reason) = refusal(&beginning(0)).await? {
        return Ok(Blame { part: None, reason });
    }
    // The first so many pass, and so many do not.
    let (mut good, mut bad) = (0, count);
    let mut blame = Blame {
        part: count.checked_sub(1),
        reason,
    };
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        match refusal(&beginning(middle)).await? {
            None => good = middle,
            Some(reason) => {
                bad = middle;
                blame = Blame {
                    part: Some(middle - 1),
                    reason,
                };
            }
        }
    }
    Ok(blame)
}

/// nft's words if it would not do the transaction.
async fn refusal(transaction: &Transaction) -> Result<Option<String>, NftError> {
    match run::check(transaction, "check").await {
        Ok(()) => Ok(None),
        Err(NftError::Refused { reason, .. }) => Ok(Some(reason)),
        Err(other) => Err(other),
    }
}
