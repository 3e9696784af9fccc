//! What a restore will do and did, as the API tells it and `psctl` reads it: a JSON value a line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::stream::About;

/// What becomes of one object of a backup.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// It is not there.
    Create,
    /// It is removed, and made anew with another uid.
    Replace,
    /// It is changed in place.
    Update,
    /// It is there and says the same.
    Unchanged,
    /// It is there and says something else, and is left.
    Skip,
    /// It cannot be made here.
    Refuse,
    /// It could be made, and was not.
    Fail,
}

impl Action {
    /// Names it before it is done, or done.
    pub fn word(self, done: bool) -> &'static str {
        match (self, done) {
            (Self::Create, false) => "create",
            (Self::Create, true) => "created",
            (Self::Replace, false) => "replace",
            (Self::Replace, true) => "replaced",
            (Self::Update, false) => "update",
            (Self::Update, true) => "updated",
            (Self::Unchanged, _) => "unchanged",
            (Self::Skip, false) => "skip",
            (Self::Skip, true) => "skipped",
            (Self::Refuse, false) => "refuse",
            (Self::Refuse, true) => "refused",
            (Self::Fail, _) => "failed",
        }
    }

    /// Tells whether it changes something.
    pub fn changes(self) -> bool {
        match self {
            Self::Create | Self::Replace | Self::Update => true,
            Self::Unchanged | Self::Skip | Self::Refuse | Self::Fail => false,
        }
    }
}

/// One object of a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// `Deployment shop/web`.
    pub object: String,
    pub action: Action,
    /// Why, where that is not plain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A line of the answer. Without the last one it broke off.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// The first: where the backup is from.
    Backup(About),
    Object(Entry),
    /// The last: how many objects there were of each.
    End(BTreeMap<Action, usize>),
}
