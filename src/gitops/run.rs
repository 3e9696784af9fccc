//! The loop: fetch, decide, apply, prune, remember; on the one node that owns the repository.
//!
//! A round applies even when the commit is the one before: a field that someone changed by hand comes back. What a round
//! applied is in the inventory once it ended, also where it stopped half-way; after a crash in between, the next round
//! applies the same again, unless the commit is another by then.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reconcilers::ports::{Clock, EventKind, EventRecord, EventSink};
use schemas::{Kind, Object, ObjectKey};
use store::{Applied, Author, Outcome, Store, Via};
use tokio_util::sync::CancellationToken;

use super::source::{ConfigError, Source};
use super::sync::{Inventory, parse, plan};

/// The field manager of everything that comes from Git.
pub const MANAGER: &str = "gitops";

/// After a failure; doubles with each, up to the interval or [`LONGEST_BACKOFF`], whichever is longer.
const FIRST_BACKOFF: Duration = Duration::from_secs(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// How often a node that does not own the repository looks whether it does now.
const OWNERSHIP_POLL: Duration = Duration::from_secs(5);

/// How much of an error goes into the object's status.
const MAX_MESSAGE_CHARS: usize = 2000;

/// `--gitops-*`.
#[derive(Clone)]
pub struct GitopsConfig {
    /// `--gitops-repo`: https, ssh or file URL, or a local path; may have user and password.
    pub repository: String,
    /// `--gitops-branch`.
    pub branch: String,
    /// `--gitops-path`.
    pub path: String,
    /// `--gitops-interval`.
    pub interval: Duration,
    /// The copy of the repository is kept below its `gitops`.
    pub data_dir: PathBuf,
}

/// How objects get into the cluster and out of it: the path that `POST /api/v1/manifests` takes.
#[async_trait]
pub trait Applier: Send + Sync {
    /// Validates all objects, then applies each as `manager` (server-side apply, with force). Returns one result for
    /// each, in order.
    ///
    /// # Errors
    /// [`ApplierError::Refused`]: an object is not valid, and nothing was applied. [`ApplierError::Stopped`]: some were.
    async fn apply(&self, objects: Vec<Object>, manager: &str) -> Result<Vec<Applied>, ApplierError>;

    /// Begins the deletion of an object (gracefully, with what it owns) if it has this uid. Absent, or another uid: Ok.
    async fn delete(&self, key: &ObjectKey, uid: &str) -> Result<(), ApplierError>;
}

/// Why objects were not applied or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ApplierError {
    /// Each fault with object, field, value and rule.
    #[error("{}", .0.join("; "))]
    Refused(Vec<String>),
    /// What came after these objects was not applied. Worth a retry.
    #[error("{reason}")]
    Stopped { applied: Vec<Applied>, reason: String },
    /// Nothing was done. Worth a retry.
    #[error("{0}")]
    Unavailable(String),
}

/// Keeps the cluster at what a branch says.
pub struct Gitops {
    source: Source,
    interval: Duration,
    applier: Arc<dyn Applier>,
}

/// What a round came to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Round {
    /// The repository answered, whatever is in it.
    pub(super) fetched: bool,
    /// What the repository has in the cluster now; None: as before.
    pub(super) inventory: Option<Inventory>,
    pub(super) commit: Option<String>,
    pub(super) changed: usize,
    pub(super) pruned: usize,
    pub(super) error: Option<String>,
}

impl Gitops {
    /// Sets up the following of a branch. Reaches nothing yet.
    ///
    /// # Errors
    /// The flag that cannot be used.
    pub fn new(config: &GitopsConfig, applier: Arc<dyn Applier>) -> Result<Self, ConfigError> {
        let source = Source::new(&config.repository, &config.branch, &config.path, &config.data_dir)?;
        Ok(Self {
            source,
            interval: config.interval,
            applier,
        })
    }

    /// The object that holds the inventory. Its name depends on the repository alone, so that what another branch or path
    /// of it applied before is pruned when the flags change.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::cluster(Kind::GitInventory, self.source.id())
    }

    /// Runs until `stop`. Only while `is_owner` says so does this node do anything; ask it of the live node that wins
    /// rendezvous hashing for [`Gitops::key`].
    pub async fn run(
        self,
        store: Store,
        events: Arc<dyn EventSink>,
        clock: Arc<dyn Clock>,
        is_owner: impl Fn() -> bool + Send + Sync,
        stop: CancellationToken,
    ) {
        let mut failures = 0;
        let mut pause = Duration::ZERO;
        while stop
            .run_until_cancelled(tokio::time::sleep(pause))
            .await
            .is_some()
        {
            if !is_owner() {
                failures = 0;
                pause = OWNERSHIP_POLL.min(self.interval);
                continue;
            }
            let before = store.get(&self.key()).map(|view| view.object);
            let inventory = before.as_deref().map(Inventory::of).unwrap_or_default();
            let Some(round) = stop.run_until_cancelled(self.round(&inventory, &is_owner)).await else {
                return;
            };
            let Some(round) = round else {
                continue;
            };
            // What is wrong in a commit is mended by the next one: only a server that does not answer is spared.
            failures = if round.fetched { 0 } else { failures + 1 };
            pause = jittered(self.pause(failures));
            let object = self.object(before.as_deref(), &inventory, &round);
            if before.as_deref().is_none_or(|before| differs(before, &object)) {
                let author = Author {
                    manager: MANAGER.into(),
                    user: String::new(),
                    via: Via::GitOps,
                    unix_seconds: clock.unix_seconds(),
                };
                match store.apply(object, author, true).await {
                    Ok(applied) => events.event(self.event(applied.view.object.uid(), &round)),
                    Err(error) => {
                        tracing::warn!(repository = self.source.repository(), %error, "inventory not stored")
                    }
                }
            }
        }
    }

    /// One round: fetch, decide, apply, prune. None: this node lost the repository while it fetched, and did nothing.
    pub(super) async fn round(&self, inventory: &Inventory, is_owner: impl Fn() -> bool) -> Option<Round> {
        let mut round = Round::default();
        match self.try_round(inventory, is_owner, &mut round).await {
            Ok(true) => Some(round),
            Ok(false) => None,
            Err(error) => {
                tracing::warn!(repository = self.source.repository(), %error, "not synchronised with Git, will retry");
                round.error = Some(error.to_string().chars().take(MAX_MESSAGE_CHARS).collect());
                Some(round)
            }
        }
    }

    async fn try_round(
        &self,
        inventory: &Inventory,
        is_owner: impl Fn() -> bool,
        round: &mut Round,
    ) -> anyhow::Result<bool> {
        let snapshot = self.source.fetch().await?;
        round.fetched = true;
        let at_commit =
            |error: &dyn std::error::Error| anyhow::anyhow!("commit {}: {error}", snapshot.commit);
        let objects = parse(&snapshot).map_err(|error| at_commit(&error))?;
        let plan = plan(inventory, objects).map_err(|error| at_commit(&error))?;
        if !is_owner() {
            return Ok(false);
        }
        let applied = match self.applier.apply(plan.apply, MANAGER).await {
            Ok(applied) => applied,
            Err(error) => {
                // What was applied is remembered beside what was there: the next commit may no longer have it.
                if let ApplierError::Stopped { applied, .. } = &error {
                    let mut known = inventory.clone();
                    known.add(applied);
                    round.inventory = Some(known);
                }
                return Err(at_commit(&error));
            }
        };
        round.commit = Some(snapshot.commit.clone());
        round.changed = applied
            .iter()
            .filter(|applied| applied.outcome != Outcome::Unchanged)
            .count();
        let mut now = Inventory::default();
        now.add(&applied);
        // What cannot be pruned now stays in the inventory, so that the next round tries again.
        let mut failed = None;
        for (uid, key) in plan.prune {
            match self.applier.delete(&key, &uid).await {
                Ok(()) => round.pruned += 1,
                Err(error) => {
                    failed = Some(anyhow::anyhow!("cannot prune {key}: {error}"));
                    now.objects.insert(uid, key);
                }
            }
        }
        round.inventory = Some(now);
        if round.changed + round.pruned > 0 {
            let (changed, pruned) = (round.changed, round.pruned);
            tracing::info!(commit = snapshot.commit, changed, pruned, "synchronised with Git");
        }
        failed.map_or(Ok(true), Err)
    }

    fn pause(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else {
            return self.interval;
        };
        let longest = LONGEST_BACKOFF.max(self.interval);
        FIRST_BACKOFF
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(longest)
    }

    fn object(&self, before: Option<&Object>, inventory: &Inventory, round: &Round) -> Object {
        let mut object = Object::new(&self.key());
        object.set(&["spec", "repository"], self.source.repository());
        object.set(&["spec", "branch"], self.source.branch());
        object.set(&["spec", "path"], self.source.path());
        object.set(
            &["spec", "objects"],
            round.inventory.as_ref().unwrap_or(inventory).to_value(),
        );
        let before = before
            .map(|before| before.str_at("/status/commit"))
            .unwrap_or_default();
        object.set(&["status", "commit"], round.commit.as_deref().unwrap_or(before));
        object.set(&["status", "ready"], round.error.is_none());
        object.set(&["status", "message"], round.error.as_deref().unwrap_or_default());
        object
    }

    fn event(&self, uid: &str, round: &Round) -> EventRecord {
        let (kind, reason, message) = match (&round.error, &round.commit) {
            (Some(error), _) => (EventKind::Warning, "SyncFailed", error.clone()),
            (None, commit) => {
                let (commit, changed, pruned) =
                    (commit.as_deref().unwrap_or("none"), round.changed, round.pruned);
                let message = format!("commit {commit}: {changed} objects changed, {pruned} pruned");
                (EventKind::Normal, "Synced", message)
            }
        };
        EventRecord {
            key: self.key(),
            uid: uid.to_owned(),
            kind,
            reason,
            message,
            component: "gitops",
        }
    }
}

/// Tells whether the inventory's object says something new; a round that changed nothing is not written.
fn differs(before: &Object, after: &Object) -> bool {
    ["spec", "status"]
        .iter()
        .any(|part| before.0.get(*part) != after.0.get(*part))
}

/// Up to a tenth more, so that many clusters do not ask one server at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + 0.1 * rand::random::<f64>())
}
