//! What watchers cost a write: 10,000 objects, and 0 or 1,000 watchers that match or do not. `cargo bench -p store`.
//!
//! Read the ratios to the first row. *durable* is an update with its sync to the disk; *in memory* is a change of a
//! computed field, which is nothing but taking it in and telling those that watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use schemas::selector::LabelSelector;
use schemas::{Kind, Object, ObjectKey};
use serde_json::json;
use store::{Author, NodeId, OpenOptions, Precondition, Store, WatchEvent, WatchScope, WriteError};
use tokio::task::JoinSet;

const OBJECTS: usize = 10_000;
const NAMESPACES: usize = 100;
const WATCHERS: usize = 1_000;
const UPDATES: usize = 300;
const PROJECTIONS: usize = 3_000;
/// Bytes of text in each object, for 2 KB in all.
const TEXT: usize = 1_600;
/// Creations at once, to fill the store in little time.
const CREATORS: usize = 256;

fn key(number: usize) -> ObjectKey {
    let namespace = format!("namespace-{}", number % NAMESPACES);
    ObjectKey::new(Kind::Pod, namespace, format!("pod-{number}"))
}

fn author() -> Author {
    Author {
        manager: "bench".to_owned(),
        user: "bench".to_owned(),
        unix_seconds: 0,
        via: store::Via::Api,
    }
}

async fn filled(directory: &std::path::Path) -> Store {
    let options = OpenOptions {
        cluster_id: "bench".to_owned(),
        node: NodeId("bench".to_owned()),
        seal_key: [7; 32],
    };
    let store = Store::open(directory, options).unwrap();
    let mut creating = JoinSet::new();
    for number in 0..OBJECTS {
        if creating.len() >= CREATORS {
            creating.join_next().await;
        }
        let store = store.clone();
        creating.spawn(async move {
            let mut object = Object::new(&key(number));
            object.set(&["metadata", "annotations"], json!({"text": "x".repeat(TEXT)}));
            object.set(
                &["spec", "containers"],
                json!([{"name": "web", "image": "web:1"}]),
            );
            store.create(object, author()).await.unwrap();
        });
    }
    creating.join_all().await;
    store
}

struct Figures(Vec<Duration>);

impl Figures {
    fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        let index = (sorted.len() as f64 * share) as usize;
        sorted[index.min(sorted.len() - 1)].as_secs_f64() * 1e6
    }
}

async fn updates(store: &Store) -> Figures {
    let mut figures = Vec::new();
    for number in 0..UPDATES {
        let start = Instant::now();
        let updated: Result<_, WriteError> = store
            .update(
                &key(number % NAMESPACES * NAMESPACES),
                &Precondition::default(),
                author(),
                |object| {
                    let mut object = object.clone();
                    object.set(&["metadata", "labels", "number"], format!("{start:?}"));
                    Ok(object)
                },
            )
            .await;
        updated.unwrap();
        figures.push(start.elapsed());
    }
    Figures(figures)
}

async fn projections(store: &Store, round: usize) -> Figures {
    let key = key(0);
    let mut figures = Vec::new();
    for number in 0..PROJECTIONS {
        let mut status = Object::default();
        status.set(&["status", "number"], (round * PROJECTIONS + number) as i64);
        let start = Instant::now();
        store.project(&key, Some(status));
        figures.push(start.elapsed());
        // Readers take turns with the writer, as they do beside a disk.
        if number % 64 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Figures(figures)
}

/// Who watches while writes are measured.
#[derive(Clone, Copy)]
enum Watchers {
    None,
    OfAnotherKind,
    OfAnotherNamespace,
    OfAnotherName,
    /// The store tells them, and they leave it out, as the API does for a `labelSelector`.
    OfOtherLabels,
    Matching,
    /// They match and never read.
    Stuck,
}

impl Watchers {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::OfAnotherKind => "1,000 of another kind",
            Self::OfAnotherNamespace => "1,000 of other namespaces",
            Self::OfAnotherName => "1,000 of other names",
            Self::OfOtherLabels => "1,000 of other labels",
            Self::Matching => "1,000 that match",
            Self::Stuck => "1,000 that match and never read",
        }
    }

    fn scope(self, number: usize) -> WatchScope {
        let (kind, namespace) = match self {
            Self::OfAnotherKind => (Kind::Service, None),
            Self::OfAnotherNamespace => (Kind::Pod, Some(1 + number % (NAMESPACES - 1))),
            Self::None | Self::OfAnotherName | Self::OfOtherLabels | Self::Matching | Self::Stuck => {
                (Kind::Pod, Some(0))
            }
        };
        WatchScope {
            kinds: vec![kind],
            namespace: namespace.map(|number| format!("namespace-{number}")),
        }
    }
}

#[tokio::main]
async fn main() {
    let directory = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
    let start = Instant::now();
    let store = filled(directory.path()).await;
    println!("{OBJECTS} objects of 2 KB made in {:.1?}", start.elapsed());
    println!("| watchers | durable p50 | p99 | in memory p50 | p99 | told |");
    println!("|---|---|---|---|---|---|");
    let all = [
        Watchers::None,
        Watchers::OfAnotherKind,
        Watchers::OfAnotherNamespace,
        Watchers::OfAnotherName,
        Watchers::OfOtherLabels,
        Watchers::Matching,
        Watchers::Stuck,
    ];
    for (round, watchers) in all.into_iter().enumerate() {
        let told = Arc::new(AtomicU64::new(0));
        let mut reading = JoinSet::new();
        let mut stuck = Vec::new();
        for number in 0..WATCHERS {
            if matches!(watchers, Watchers::None) {
                break;
            }
            let scope = watchers.scope(number);
            let changes = match watchers {
                Watchers::OfAnotherName => store.watch_named(scope, &format!("other-{number}"), None),
                _ => store.watch(scope, None),
            };
            let mut changes = changes.unwrap();
            if matches!(watchers, Watchers::Stuck) {
                stuck.push(changes);
                continue;
            }
            let told = told.clone();
            let selector = match watchers {
                Watchers::OfOtherLabels => LabelSelector::parse("app=other,tier!=front").unwrap(),
                _ => LabelSelector::default(),
            };
            reading.spawn(async move {
                while let Some(change) = changes.recv().await {
                    let (view, previous) = match change {
                        WatchEvent::Put { view, previous } => (view, previous),
                        WatchEvent::Deleted { view } => (view, None),
                    };
                    // Both: an object may cease to match.
                    let selects = |object: &Object| selector.matches_object(object);
                    if selects(&view.object) || previous.is_some_and(|previous| selects(&previous)) {
                        told.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let durable = updates(&store).await;
        let memory = projections(&store, round).await;
        println!(
            "| {} | {:.0} µs | {:.0} µs | {:.0} µs | {:.0} µs | {} |",
            watchers.name(),
            durable.at(0.5),
            durable.at(0.99),
            memory.at(0.5),
            memory.at(0.99),
            told.load(Ordering::Relaxed),
        );
        reading.abort_all();
    }
    store.close().await;
}
