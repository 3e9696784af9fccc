//! The loop in virtual time, over a store whose lists and watches the test controls.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use schemas::{Object, ObjectKey};
use tokio::time::sleep;

use super::*;

/// A store of pods by name; keeps the sending ends of its watches.
#[derive(Default)]
struct FakeStore {
    names: Mutex<Vec<&'static str>>,
    watches: Mutex<Vec<mpsc::Sender<WatchEvent>>>,
    gone: AtomicUsize,
}

fn view(name: &str) -> View {
    let key = ObjectKey::new(Kind::Pod, "default", name);
    View {
        object: Arc::new(Object::new(&key)),
        key,
        revision: Revision(1),
        managed: None,
        stored: true,
    }
}

impl FakeStore {
    fn put(&self, name: &'static str) {
        let event = WatchEvent::Put {
            view: view(name),
            previous: None,
        };
        self.names.lock().unwrap().push(name);
        for watch in self.watches.lock().unwrap().iter() {
            watch.try_send(event.clone()).unwrap();
        }
    }
}

impl Watched for Arc<FakeStore> {
    fn list(&self, _: Kind, _: Option<&str>) -> (impl Iterator<Item = View> + Send + use<>, Revision) {
        let names = self.names.lock().unwrap().clone();
        (names.into_iter().map(view), Revision(1))
    }

    fn watch(&self, _: WatchScope, _: Revision) -> Result<mpsc::Receiver<WatchEvent>, Gone> {
        if self
            .gone
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
        {
            return Err(Gone);
        }
        let (sender, receiver) = mpsc::channel(100);
        self.watches.lock().unwrap().push(sender);
        Ok(receiver)
    }
}

/// Notes when each key ran; a run takes `duration` and fails as often as `failures` says.
struct Recorder {
    runs: Mutex<Vec<(String, Duration)>>,
    start: Instant,
    duration: Duration,
    failures: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    next: Next,
}

impl Recorder {
    fn new(duration: Duration) -> Self {
        Self {
            runs: Mutex::default(),
            start: Instant::now(),
            duration,
            failures: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            next: Next::Done,
        }
    }

    fn runs_of(&self, key: &str) -> Vec<Duration> {
        let runs = self.runs.lock().unwrap();
        runs.iter()
            .filter(|(name, _)| name == key)
            .map(|(_, at)| *at)
            .collect()
    }
}

#[async_trait]
impl Reconciler for Recorder {
    type Key = String;

    fn name(&self) -> &'static str {
        "recorder"
    }

    fn scope(&self) -> WatchScope {
        WatchScope {
            kinds: vec![Kind::Pod],
            namespace: None,
        }
    }

    fn keys(&self, trigger: &Trigger) -> Vec<String> {
        match trigger {
            Trigger::Store(WatchEvent::Put { view, .. } | WatchEvent::Deleted { view }) => {
                vec![view.key.name.clone()]
            }
            Trigger::Cluster(_) => vec!["cluster".into()],
            Trigger::Runtime(pod) => vec![format!("runtime {pod}")],
            Trigger::Resync => vec!["resync".into()],
        }
    }

    async fn reconcile(&self, key: &String) -> Result<Next, ReconcileError> {
        self.runs
            .lock()
            .unwrap()
            .push((key.clone(), self.start.elapsed()));
        let running = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(running, Ordering::SeqCst);
        sleep(self.duration).await;
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        let fails = self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        match fails {
            Ok(_) => Err(PortError::NotFound("the world".into()).into()),
            Err(_) => Ok(self.next),
        }
    }
}

/// A loop in the background, and the ends that the test pulls.
struct Running {
    store: Arc<FakeStore>,
    recorder: Arc<Recorder>,
    cluster: watch::Sender<Arc<Cluster>>,
    shutdown: CancellationToken,
    settled: oneshot::Receiver<()>,
    task: tokio::task::JoinHandle<()>,
}

fn start(store: FakeStore, recorder: Recorder, runtime: Option<BoxStream<'static, String>>) -> Running {
    let (store, recorder) = (Arc::new(store), Arc::new(recorder));
    let shutdown = CancellationToken::new();
    let cluster = Cluster {
        me: NodeId("me".into()),
        nodes: BTreeMap::new(),
    };
    let (cluster, receiver) = watch::channel(Arc::new(cluster));
    let sources = Sources {
        store: store.clone(),
        cluster: receiver,
        runtime,
    };
    let (first, settled) = oneshot::channel();
    let task = tokio::spawn(Loop::new(recorder.clone(), 4, first).run(sources, shutdown.clone()));
    Running {
        store,
        recorder,
        cluster,
        shutdown,
        settled,
        task,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_there_at_the_start_and_what_comes_later_runs() {
    let store = FakeStore::default();
    store.put("first");
    let runtime = futures::stream::iter(["uid".to_owned()]).boxed();
    let running = start(store, Recorder::new(Duration::ZERO), Some(runtime));
    sleep(Duration::from_secs(1)).await;
    running.store.put("second");
    running.cluster.send_modify(|_| {});
    sleep(Duration::from_secs(1)).await;
    for (key, times) in [
        ("first", 1),
        ("second", 1),
        ("resync", 1),
        ("runtime uid", 1),
        ("cluster", 2),
    ] {
        assert_eq!(running.recorder.runs_of(key).len(), times, "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_during_a_run_becomes_one_more_run() {
    let running = start(FakeStore::default(), Recorder::new(Duration::from_secs(1)), None);
    sleep(Duration::from_millis(10)).await;
    for _ in 0..50 {
        running.store.put("a");
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_secs(10)).await;
    assert_eq!(running.recorder.runs_of("a").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_more_keys_at_a_time_than_workers() {
    let store = FakeStore::default();
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        store.put(name);
    }
    let running = start(store, Recorder::new(Duration::from_secs(1)), None);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(running.recorder.most_at_once.load(Ordering::SeqCst), 4);
    assert_eq!(running.recorder.runs_of("h").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn failures_are_repeated_with_growing_pauses_until_one_succeeds() {
    let store = FakeStore::default();
    let recorder = Recorder::new(Duration::ZERO);
    // The first runs are those of `cluster` and `resync`, which fail as often: count them all.
    recorder.failures.store(12, Ordering::SeqCst);
    let running = start(store, recorder, None);
    sleep(Duration::from_secs(20)).await;
    let runs = running.recorder.runs_of("cluster");
    let pauses: Vec<Duration> = runs.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() >= 4, "{pauses:?}");
    assert!(pauses[0] >= queue::BACKOFF_FIRST, "{pauses:?}");
    assert!(pauses[3] > pauses[0], "{pauses:?}");
    assert_eq!(running.recorder.failures.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cut_off_watch_is_listed_and_followed_again() {
    let running = start(FakeStore::default(), Recorder::new(Duration::ZERO), None);
    sleep(Duration::from_secs(1)).await;
    running.store.watches.lock().unwrap().clear();
    running.store.gone.store(2, Ordering::SeqCst);
    running.store.put("unseen");
    sleep(Duration::from_secs(1)).await;
    assert!(!running.recorder.runs_of("unseen").is_empty());
    let before = running.recorder.runs_of("seen").len();
    running.store.put("seen");
    sleep(Duration::from_millis(10)).await;
    assert_eq!(running.recorder.runs_of("seen").len(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn resync_and_next_after_wake_a_quiet_loop() {
    let store = FakeStore::default();
    store.put("a");
    let mut recorder = Recorder::new(Duration::ZERO);
    recorder.next = Next::After(Duration::from_secs(7));
    let running = start(store, recorder, None);
    sleep(Duration::from_secs(29)).await;
    assert_eq!(running.recorder.runs_of("a").len(), 5, "0, 7, 14, 21 and 28 s");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(running.recorder.runs_of("a").len(), 6, "and the resync");
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_runs_end_and_starts_none() {
    let running = start(FakeStore::default(), Recorder::new(Duration::from_secs(2)), None);
    sleep(Duration::from_secs(1)).await;
    let before = running.recorder.runs.lock().unwrap().len();
    running.shutdown.cancel();
    running.task.await.unwrap();
    assert_eq!(running.recorder.at_once.load(Ordering::SeqCst), 0, "runs ended");
    assert_eq!(
        running.recorder.runs.lock().unwrap().len(),
        before,
        "none started"
    );
}

#[tokio::test(start_paused = true)]
async fn it_has_settled_when_all_that_was_there_has_run_once() {
    let store = FakeStore::default();
    for name in ["a", "b", "c", "d", "e", "f"] {
        store.put(name);
    }
    let mut recorder = Recorder::new(Duration::from_secs(1));
    // Neither a run that fails nor one that comes again holds it up.
    recorder.failures.store(1, Ordering::SeqCst);
    recorder.next = Next::After(Duration::from_secs(1));
    let running = start(store, recorder, None);
    running.settled.await.unwrap();
    // With `cluster` and `resync` eight keys, four at a time.
    assert_eq!(running.recorder.start.elapsed(), Duration::from_secs(2));
    for name in ["a", "b", "c", "d", "e", "f"] {
        assert!(!running.recorder.runs_of(name).is_empty(), "{name}");
    }
}
