//! `POST /api/v1/restore`: makes what a backup holds, as new objects of this cluster. The file is checked whole and a plan
//! made of all of it before anything is written; each object then succeeds or fails by itself, so that a second
//! restore goes on where one ended.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, StatusCode, header};
use schemas::{Kind, Object, ObjectKey, deletion, meta};
use store::{Author, Precondition, Snapshot, Store};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::content::read_body;
use super::manifests::title;
use super::resources::{check_manager, check_namespace, check_new, delete_if};
use super::state::{ApiState, user_of};
use super::status::{ApiError, ApiResult};
use super::target::Query;
use crate::backup::{self, Action, Backup, Entry, Line, MAX_BACKUP_BYTES};

/// The field manager of what is restored, where the client names none.
const DEFAULT_MANAGER: &str = "restore";
/// A sealed file is longer by a tag in 64 KiB, and a header.
const MAX_BODY_BYTES: usize = MAX_BACKUP_BYTES + MAX_BACKUP_BYTES / 1024 + 64 * 1024;
/// Objects at once: they share syncs of the disk. Those that wait for a pod to stop hold up few others.
const AT_ONCE: usize = 16;
/// Lines that may wait for the client.
const LINES_AHEAD: usize = 256;
/// How long an object that is replaced may take to go, beyond its grace.
const REMOVAL_MARGIN: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What is to be done with one object of the backup.
struct Planned {
    /// Its place in the backup.
    index: usize,
    key: Option<ObjectKey>,
    entry: Entry,
}

/// `?dryRun=All`: the plan alone. `?replace=true`: objects that say something else are made anew.
pub(crate) async fn restore(State(state): State<ApiState>, request: Request) -> ApiResult {
    let user = user_of(request.extensions(), request.headers());
    let query = Query::of(request.uri())?;
    let (dry_run, replace) = (query.dry_run()?, query.flag("replace"));
    check_manager(query.text("fieldManager"))?;
    let manager = match query.text("fieldManager") {
        "" => DEFAULT_MANAGER,
        named => named,
    };
    let author = state.author(manager, &user);
    let place = state.backup_place()?;
    let file = read_body(request.into_body(), MAX_BODY_BYTES).await?;
    let planning = state.clone();
    let (backup, planned) = tokio::task::spawn_blocking(move || read_and_plan(&planning, file, replace))
        .await
        .map_err(|error| ApiError::internal(format!("the plan was not made: {error}")))??;

    let (lines, receiver) = mpsc::channel(LINES_AHEAD);
    let telling = async move {
        let teller = Teller { lines };
        // Whoever asked is gone: what is not begun is left.
        if teller.tell(&Line::Backup(backup.about.clone())).await.is_ok() {
            _ = carry_out(&state, &backup, planned, (!dry_run).then_some(&author), &teller).await;
        }
        drop(place);
    };
    tokio::spawn(telling);
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(receiver)));
    let media = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    Ok(response)
}

// ---------------------------------------------------------------- plan

fn read_and_plan(state: &ApiState, file: Bytes, replace: bool) -> ApiResult<(Backup, Vec<Planned>)> {
    let refused = |error| ApiError::bad_request(format!("the file cannot be restored: {error}"));
    let backup = backup::open(file.into(), &state.backups.identity)
        .and_then(backup::read)
        .map_err(refused)?;
    let planner = Planner {
        store: &state.store,
        snapshot: backup::snapshot(&state.store),
        replace,
    };
    let mut planned = Vec::with_capacity(backup.count());
    let (mut keys, mut namespaces) = (HashSet::new(), HashSet::new());
    for index in 0..backup.count() {
        let object = backup.object(index).map_err(refused)?;
        let key = object.key().filter(|key| backup::is_backed_up(key.kind));
        // Ours have nothing else; of a file that somebody made, the rest is left out here.
        let portable = backup::portable(&object);
        let step = match (&key, &portable) {
            (None, _) => Err("this version restores no objects of this kind".to_owned()),
            (_, None) => Err("it belongs to a controller, or is being deleted".to_owned()),
            (Some(key), _) if !keys.insert(key.clone()) => Err("is in the backup more than once".to_owned()),
            (Some(key), Some(portable)) => planner.step(key, portable, &namespaces),
        };
        let (action, message) = step.unwrap_or_else(|reason| (Action::Refuse, reason));
        if let Some(key) = &key
            && key.kind == Kind::Namespace
            && action == Action::Create
        {
            namespaces.insert(key.name.clone());
        }
        let object = match &key {
            Some(key) => title(key),
            None => format!("{} {}", object.str_at("/kind"), object.name()),
        };
        planned.push(Planned {
            index,
            key,
            entry: Entry {
                object,
                action,
                message,
            },
        });
    }
    Ok((backup, planned))
}

struct Planner<'a> {
    store: &'a Store,
    snapshot: Snapshot,
    replace: bool,
}

impl Planner<'_> {
    /// Decides what becomes of an object, with a reason where one is needed. `namespaces`: those that will be made.
    fn step(
        &self,
        key: &ObjectKey,
        object: &Object,
        namespaces: &HashSet<String>,
    ) -> Result<(Action, String), String> {
        let Some(document) = self.snapshot.get(key) else {
            if !namespaces.contains(&key.namespace) {
                check_namespace(self.store, key).map_err(|error| error.message)?;
            }
            check_new(key, object).map_err(|error| error.message)?;
            return Ok((Action::Create, String::new()));
        };
        let stays = stays(key.kind);
        match backup::portable(&document) {
            Some(present) if present == *object => return Ok((Action::Unchanged, String::new())),
            None if document.controller().is_some() => {
                return Ok((Action::Skip, "a controller has made one of this name".to_owned()));
            }
            None if !self.replace || stays => {
                return Ok((Action::Skip, "it is being deleted".to_owned()));
            }
            Some(_) | None => {}
        }
        if !self.replace {
            let reason = "it is there and says something else; --replace makes it as in the backup";
            return Ok((Action::Skip, reason.to_owned()));
        }
        check_new(key, object).map_err(|error| error.message)?;
        let action = if stays { Action::Update } else { Action::Replace };
        Ok((action, String::new()))
    }
}

/// Tells whether objects of a kind are changed in place: with a namespace goes what is in it, and without its whitelist the
/// DNS server would let everything pass for a moment.
fn stays(kind: Kind) -> bool {
    matches!(kind, Kind::Namespace | Kind::DnsWhitelist)
}

// ---------------------------------------------------------------- acting

/// The client does not read any more.
struct Gone;

struct Teller {
    lines: mpsc::Sender<Result<Bytes, std::convert::Infallible>>,
}

impl Teller {
    async fn tell(&self, line: &Line) -> Result<(), Gone> {
        // Lines are made of text and numbers.
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        self.lines.send(Ok(text.into())).await.map_err(|_| Gone)
    }
}

/// Does what is planned, or, without an author, tells it.
async fn carry_out(
    state: &ApiState,
    backup: &Backup,
    planned: Vec<Planned>,
    author: Option<&Author>,
    teller: &Teller,
) -> Result<(), Gone> {
    let mut counts = BTreeMap::new();
    let is_namespace = |planned: &Planned| {
        planned
            .key
            .as_ref()
            .is_some_and(|key| key.kind == Kind::Namespace)
    };
    let (namespaces, others): (Vec<_>, Vec<_>) = planned.into_iter().partition(is_namespace);
    for part in [namespaces, others] {
        let acting = futures::stream::iter(part).map(|planned| async {
            match author {
                Some(author) => act(state, backup, planned, author).await,
                None => planned.entry,
            }
        });
        // A plan is told in its order; what is done, as it is done.
        let mut done = match author {
            Some(_) => acting.buffer_unordered(AT_ONCE).boxed(),
            None => acting.buffered(1).boxed(),
        };
        while let Some(entry) = done.next().await {
            *counts.entry(entry.action).or_default() += 1;
            teller.tell(&Line::Object(entry)).await?;
        }
    }
    teller.tell(&Line::End(counts)).await
}

async fn act(state: &ApiState, backup: &Backup, planned: Planned, author: &Author) -> Entry {
    let Planned {
        index,
        key,
        mut entry,
    } = planned;
    let Some(key) = key.filter(|_| entry.action.changes()) else {
        return entry;
    };
    let object = backup.object(index).map(|object| backup::portable(&object));
    let result = match object {
        Ok(Some(object)) => act_on(state, &key, object, entry.action, author).await,
        Ok(None) => return entry,
        Err(error) => Err(ApiError::internal(error.to_string())),
    };
    if let Err(error) = result {
        entry.action = Action::Fail;
        entry.message = error.message;
    }
    entry
}

pub(super) async fn act_on(
    state: &ApiState,
    key: &ObjectKey,
    object: Object,
    action: Action,
    author: &Author,
) -> ApiResult<()> {
    match action {
        Action::Create => {}
        Action::Replace => take_away(state, key, author).await?,
        Action::Update => return set(&state.store, key, &object, author).await,
        Action::Unchanged | Action::Skip | Action::Refuse | Action::Fail => return Ok(()),
    }
    // The plan counts on namespaces of the backup, which may have failed to be made.
    check_namespace(&state.store, key)?;
    state.store.create(object, author.clone()).await?;
    Ok(())
}

/// Writes the content of an object that stays the same one.
async fn set(store: &Store, key: &ObjectKey, object: &Object, author: &Author) -> ApiResult<()> {
    let precondition = Precondition::default();
    store
        .update::<ApiError>(key, &precondition, author.clone(), |document| {
            let mut changed = object.clone();
            for field in meta::SERVER_FIELDS.into_iter().chain(["ownerReferences"]) {
                let pointer = format!("/metadata/{field}");
                if let Some(value) = document.pointer(&pointer) {
                    changed.set(&["metadata", field], value.clone());
                }
            }
            if let Some(status) = document.pointer("/status") {
                changed.set(&["status"], status.clone());
            }
            Ok(changed)
        })
        .await?;
    Ok(())
}

/// Deletes an object as a user would, and waits until it is gone.
async fn take_away(state: &ApiState, key: &ObjectKey, author: &Author) -> ApiResult<()> {
    let Some(view) = state.store.get(key) else {
        return Ok(());
    };
    let uid = view.object.uid();
    let grace = deletion::grace_seconds(key.kind, &view.object, None).unwrap_or_default();
    delete_if(state, key, uid, author.clone()).await?;
    let gone = async {
        while state
            .store
            .get(key)
            .is_some_and(|now| now.stored && now.object.uid() == uid)
        {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let patience = Duration::from_secs(grace.unsigned_abs()) + REMOVAL_MARGIN;
    tokio::time::timeout(patience, gone).await.map_err(|_| {
        ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            format!(
                "it was deleted and is still there after {} s (a finalizer may hold it): restore again when it is gone",
                patience.as_secs()
            ),
        )
    })
}
