//! watch: changes as lines of JSON, from the state that the client knows or from now.

use std::convert::Infallible;
use std::fmt::Write;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use schemas::Object;
use serde_json::{Value, json};
use store::{Revision, Store, View, Views, WatchEvent, WatchScope};
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::time::{Instant, Interval};
use tokio_util::sync::CancellationToken;

use super::form::Form;
use super::options::Beginning;
use super::peer_events::{self, Change, PeerEvents};
use super::{Call, shown, shown_object, with_managed};
use crate::api::content::Shape;
use crate::api::selection::Selection;
use crate::api::status::{ApiError, ApiResult};

/// A watch without `timeoutSeconds` ends after this; clients watch again.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Lines that are sent at once; more waits where it was, shared with other watches, until the client has taken them.
const CHUNK_BYTES: usize = 64 * 1024;
/// As kube-apiserver sends them.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Answers a watch of a collection, or of one object.
///
/// A version to begin from that is not kept, or another node's, is no error of the request: as in Kubernetes, the watch begins, and
/// ends with an `ERROR` that says it. kube-rs lists again for that alone, and asks for ever where the answer itself is 410.
pub(super) async fn watch(call: &Call<'_>) -> ApiResult {
    match begin(call) {
        Ok(session) => Ok(streamed(stream::unfold(session, |mut session| async move {
            let chunk = session.next().await?;
            Some((chunk, session))
        }))),
        Err(error) if error.code == StatusCode::GONE => {
            let end = json!({"type": "ERROR", "object": error.to_value()});
            Ok(streamed(stream::iter([Bytes::from(format!("{end}\n"))])))
        }
        Err(error) => Err(error),
    }
}

fn streamed(lines: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(lines.map(Ok::<_, Infallible>)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

fn begin(call: &Call<'_>) -> ApiResult<Session> {
    let mut selection = Selection::of(call.target.row, &call.query)?;
    if let Some(name) = &call.target.name {
        selection = selection.named(name);
    }
    let timeout = match call.query.number::<u64>("timeoutSeconds")? {
        None | Some(0) => DEFAULT_TIMEOUT,
        Some(seconds) => Duration::from_secs(seconds).min(MAX_TIMEOUT),
    };
    let writer = Writer {
        form: Form::of(call)?,
        clock: call.state.clock.clone(),
        columns_sent: false,
    };
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let store = &call.state.store;
    let beginning = match Beginning::of(&call.query)? {
        _ if peer_events::begins_now(call) => Beginning::Now,
        Beginning::All(Some(version)) if !store.has_issued(version) => return Err(ApiError::expired()),
        beginning => beginning,
    };
    let namespace = call.target.namespace.clone();
    let scope = WatchScope {
        kinds: vec![call.kind()],
        namespace: namespace.clone(),
    };
    let (initial, from) = match beginning {
        Beginning::All(_) => {
            let all = store.list_at(call.kind(), namespace.as_deref(), None, None);
            let all = all.map_err(|_| ApiError::expired())?;
            let revision = all.revision();
            let all = match selection.name() {
                Some(name) => all.named(name),
                None => all,
            };
            (Some(all), revision)
        }
        Beginning::Now => (None, store.revision()),
        Beginning::After(version) => (None, version),
    };
    let others = PeerEvents::follow(call, initial.is_some())?;
    let changes = match selection.name() {
        Some(name) => store.watch_named(scope, name, Some(from)),
        None => store.watch(scope, Some(from)),
    };
    let changes = changes.map_err(|_| ApiError::expired())?;
    let frames = Frames {
        writer,
        selection,
        chunk: String::new(),
        last: from,
    };
    let mut ticks = tokio::time::interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    Ok(Session {
        store: store.clone(),
        frames,
        initial,
        tells_initial_end: bookmarks && call.query.flag("sendInitialEvents"),
        changes,
        others,
        ticks,
        bookmarks,
        deadline: Instant::now() + timeout,
        stopping: call.stopping.clone().unwrap_or_default(),
        ended: false,
    })
}

/// One open watch.
struct Session {
    store: Store,
    frames: Frames,
    /// What was there when the watch began, and was not sent yet.
    initial: Option<Views>,
    /// A bookmark says where it ends.
    tells_initial_end: bool,
    changes: mpsc::Receiver<WatchEvent>,
    others: PeerEvents,
    ticks: Interval,
    bookmarks: bool,
    deadline: Instant,
    stopping: CancellationToken,
    /// The last frame was sent.
    ended: bool,
}

impl Session {
    /// Waits for the next lines to send; None ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.frames.take() {
                return Some(chunk);
            }
            if self.ended {
                return None;
            }
            if let Some(initial) = &mut self.initial {
                self.frames.initial(initial);
                if initial.len() == 0 {
                    self.initial = None;
                    if self.tells_initial_end {
                        self.frames.bookmark(true);
                    }
                }
                continue;
            }
            tokio::select! {
                change = self.changes.recv() => match change {
                    Some(change) => {
                        self.frames.change(change);
                        // What waits already goes out with it.
                        while !self.frames.is_full()
                            && let Ok(change) = self.changes.try_recv()
                        {
                            self.frames.change(change);
                        }
                    }
                    None => {
                        self.frames.write("ERROR", &ApiError::expired().to_value());
                        self.ended = true;
                    }
                },
                Some(change) = self.others.next() => self.frames.pass_on(change),
                _ = self.ticks.tick(), if self.bookmarks => self.bookmark(),
                () = tokio::time::sleep_until(self.deadline) => {
                    // The client comes back, from here.
                    if self.bookmarks {
                        self.bookmark();
                    }
                    self.ended = true;
                }
                () = self.stopping.cancelled() => return None,
            }
        }
    }

    /// Tells the client of the newest version, also where only objects of other kinds changed: the history that it can
    /// come back to is of all kinds.
    fn bookmark(&mut self) {
        // A change is in the channel before others can see its version: what waits now is all up to this one.
        let seen = self.store.revision();
        loop {
            // The client is far behind: it has other news, and the next bookmark.
            if self.frames.is_full() {
                return;
            }
            match self.changes.try_recv() {
                Ok(change) => self.frames.change(change),
                Err(TryRecvError::Empty) => break,
                // Changes were left out: what follows is the end.
                Err(TryRecvError::Disconnected) => return,
            }
        }
        self.frames.last = self.frames.last.max(seen);
        self.frames.bookmark(false);
    }
}

/// Turns changes into lines.
struct Frames {
    writer: Writer,
    selection: Selection,
    chunk: String,
    /// The newest version that the client knows of.
    last: Revision,
}

impl Frames {
    fn take(&mut self) -> Option<Bytes> {
        if self.chunk.is_empty() {
            return None;
        }
        Some(Bytes::from(std::mem::take(&mut self.chunk)))
    }

    /// Tells whether what is there should be sent before more is added.
    fn is_full(&self) -> bool {
        self.chunk.len() >= CHUNK_BYTES
    }

    fn write(&mut self, event: &str, object: &Value) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.chunk, "{}", json!({"type": event, "object": object}));
    }

    fn push(&mut self, event: &str, object: Object) {
        let value = self.writer.write(object);
        self.write(event, &value);
    }

    /// [`Frames::push`] with `managedFields`, where somebody reads them.
    fn push_view(&mut self, event: &str, object: Object, view: &View) {
        let object = match self.writer.form.shape {
            Shape::Whole | Shape::Metadata => with_managed(object, view),
            Shape::Table => object,
        };
        self.push(event, object);
    }

    /// Shows a part of what was there at the beginning.
    fn initial(&mut self, objects: &mut Views) {
        while !self.is_full()
            && let Some(view) = objects.next()
        {
            let object = shown(&view);
            if self.selection.matches(&object) {
                self.push_view("ADDED", object, &view);
            }
        }
    }

    /// An object that begins or ceases to match the selectors is added or deleted, for this client.
    fn change(&mut self, change: WatchEvent) {
        let (view, previous, is_there) = match change {
            WatchEvent::Put { view, previous } => (view, previous, true),
            WatchEvent::Deleted { view } => {
                let last = Some(view.object.clone());
                (view, last, false)
            }
        };
        let before = |previous| shown_object(view.key.kind, previous);
        let matched = previous.as_deref().is_some_and(|previous| {
            self.selection.is_everything() || self.selection.matches(&before(previous))
        });
        let object = is_there
            .then(|| shown(&view))
            .filter(|object| self.selection.matches(object));
        match (matched, object) {
            (false, Some(object)) => self.push_view("ADDED", object, &view),
            (true, Some(object)) => self.push_view("MODIFIED", object, &view),
            // As it was when it matched last, at the version of its end.
            (true, None) => {
                let mut last = previous.as_deref().map(before).unwrap_or_default();
                last.set(&["metadata", "resourceVersion"], view.revision.to_string());
                self.push_view("DELETED", last, &view);
            }
            (false, None) => {}
        }
        self.last = self.last.max(view.revision);
    }

    /// Shows what another node tells. Its versions are not ours: a client that comes back names the newest that it saw.
    fn pass_on(&mut self, change: Change) {
        let Change { event, mut object } = change;
        object.set(&["metadata", "resourceVersion"], self.last.to_string());
        self.push(&event, object);
    }

    fn bookmark(&mut self, initial_events_end: bool) {
        let Form { row, shape, .. } = self.writer.form;
        let mut metadata = json!({"resourceVersion": self.last.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let value = match shape {
            Shape::Whole => json!({"kind": row.name, "apiVersion": row.api_version(), "metadata": metadata}),
            Shape::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Shape::Table => json!({
                "kind": "Table",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": {"resourceVersion": self.last.to_string()},
                "columnDefinitions": [],
                "rows": [{"cells": [], "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                }}],
            }),
        };
        self.write("BOOKMARK", &value);
    }
}

/// Shows objects in the shape that the client asked for.
struct Writer {
    form: Form,
    clock: std::sync::Arc<dyn reconcilers::ports::Clock>,
    /// The columns come with the first row alone.
    columns_sent: bool,
}

impl Writer {
    fn write(&mut self, object: Object) -> Value {
        let mut value = self.form.one(object, self.clock.unix_seconds());
        if self.form.shape == Shape::Table && std::mem::replace(&mut self.columns_sent, true) {
            value["columnDefinitions"] = Value::Null;
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use reconcilers::ports::{Clock, Moment};
    use schemas::{Kind, ObjectKey};
    use store::{Author, MemoryDisk, NodeId, OpenOptions, Via};

    use super::*;
    use crate::api::target::Query;

    struct StoppedClock;

    impl Clock for StoppedClock {
        fn now(&self) -> Moment {
            Moment::default()
        }

        fn unix_seconds(&self) -> i64 {
            0
        }
    }

    fn store() -> Store {
        let options = OpenOptions {
            cluster_id: "test".into(),
            node: NodeId("n1".into()),
            seal_key: [7; 32],
        };
        Store::open_in_memory(MemoryDisk::default(), options).unwrap()
    }

    fn session(store: &Store, kind: Kind) -> Session {
        let scope = WatchScope {
            kinds: vec![kind],
            namespace: None,
        };
        let writer = Writer {
            form: Form::whole(kind.row()),
            clock: std::sync::Arc::new(StoppedClock),
            columns_sent: false,
        };
        Session {
            store: store.clone(),
            frames: Frames {
                writer,
                selection: Selection::of(kind.row(), &Query::default()).unwrap(),
                chunk: String::new(),
                last: store.revision(),
            },
            initial: None,
            tells_initial_end: false,
            changes: store.watch(scope, None).unwrap(),
            others: PeerEvents::none(),
            ticks: tokio::time::interval(BOOKMARK_INTERVAL),
            bookmarks: true,
            deadline: Instant::now() + DEFAULT_TIMEOUT,
            stopping: CancellationToken::new(),
            ended: false,
        }
    }

    async fn create(store: &Store, kind: Kind, name: &str) -> Revision {
        let author = Author {
            manager: "test".into(),
            user: String::new(),
            via: Via::Api,
            unix_seconds: 0,
        };
        let object = Object::new(&ObjectKey::new(kind, "default", name));
        store.create(object, author).await.unwrap().revision
    }

    fn lines(session: &mut Session) -> Vec<(String, String)> {
        let chunk = std::mem::take(&mut session.frames.chunk);
        let frames = chunk.lines().map(|line| {
            let frame: Value = serde_json::from_str(line).unwrap();
            let text = |pointer| frame.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
            (text("/type"), text("/object/metadata/resourceVersion"))
        });
        frames.collect()
    }

    #[tokio::test]
    async fn bookmarks_of_a_quiet_kind_move_with_the_others() {
        let store = store();
        let mut session = session(&store, Kind::Service);
        let pod = create(&store, Kind::Pod, "a").await;
        session.bookmark();
        assert_eq!(lines(&mut session), [("BOOKMARK".to_owned(), pod.to_string())]);
    }

    #[tokio::test]
    async fn what_a_bookmark_covers_comes_before_it() {
        let store = store();
        let mut session = session(&store, Kind::Service);
        let service = create(&store, Kind::Service, "a").await;
        let pod = create(&store, Kind::Pod, "a").await;
        session.bookmark();
        assert_eq!(
            lines(&mut session),
            [
                ("ADDED".to_owned(), service.to_string()),
                ("BOOKMARK".to_owned(), pod.to_string())
            ]
        );
    }

    #[tokio::test]
    async fn no_bookmark_covers_changes_that_were_left_out() {
        let store = store();
        let mut session = session(&store, Kind::Service);
        store.close().await;
        session.bookmark();
        assert_eq!(lines(&mut session), []);
    }

    #[tokio::test]
    async fn what_is_there_is_sent_in_parts() {
        let store = store();
        for number in 0..100 {
            let object = Object::new(&ObjectKey::cluster(Kind::Node, format!("n{number}")));
            let mut large = object.clone();
            large.set(&["metadata", "annotations", "text"], "x".repeat(CHUNK_BYTES / 10));
            store.project(&object.key().unwrap(), Some(large));
        }
        let mut session = session(&store, Kind::Node);
        session.initial = store.list_at(Kind::Node, None, None, None).ok();
        session.tells_initial_end = true;
        let mut parts = Vec::new();
        while parts.last() != Some(&"BOOKMARK".to_owned()) {
            let part = session.next().await.unwrap();
            assert!(part.len() < CHUNK_BYTES * 2, "{}", part.len());
            session.frames.chunk = String::from_utf8(part.to_vec()).unwrap();
            parts.extend(lines(&mut session).into_iter().map(|(event, _)| event));
        }
        assert_eq!(parts.len(), 101);
    }
}
