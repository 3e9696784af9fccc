//! SIGKILL at any instant: a process of its own writes and says what was acknowledged; all of that is there afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use rand::RngExt;
use schemas::Kind;

use super::*;

/// Tells the writer, which is this test binary again, where to write, and what to call it.
const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";
const ROUND: &str = "STORE_CRASH_ROUND";
const ROUNDS: usize = 20;
/// Acknowledged changes after which the writer is killed, at most.
const CHANGES: usize = 40;
/// At once, so that several share a sync.
const WRITERS: usize = 4;
/// Long values lie in files of their own.
const LONG_BYTES: usize = 100_000;

/// Says what an object is now by acknowledged changes, past the capture of the test harness.
fn acknowledged(replicas: &str, name: &str) {
    let mut output = std::io::stdout().lock();
    output
        .write_all(format!("ack {replicas} {name}\n").as_bytes())
        .unwrap();
    output.flush().unwrap();
}

/// The other process. Does nothing in a usual run of the tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_until_it_is_killed() {
    let (Ok(directory), Ok(round)) = (std::env::var(DIRECTORY), std::env::var(ROUND)) else {
        return;
    };
    let store = Store::open(Path::new(&directory), options("a")).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (store, round) = (store.clone(), round.clone());
        writers.spawn(async move {
            for number in 0.. {
                let name = format!("r{round}-w{writer}-{number}");
                let mut object = deployment(&name);
                if number % 10 == 3 {
                    object.set(&["metadata", "annotations", "x"], "y".repeat(LONG_BYTES));
                }
                let key = key_of(&object);
                store.create(object, author("x")).await.unwrap();
                acknowledged("3", &name);
                edit(&store, &key, |object| object.set(&["spec", "replicas"], 7)).await;
                acknowledged("7", &name);
                if number % 3 == 0 {
                    let anything = Precondition::default();
                    store.remove(&key, &anything, author("x")).await.unwrap();
                    acknowledged("gone", &name);
                }
            }
        });
    }
    writers.join_all().await;
}

/// Runs the writer until it has said so much; adds to `last` what it said last of each object.
fn write_and_kill(directory: &Path, round: usize, changes: usize, last: &mut BTreeMap<String, String>) {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::crash::writes_until_it_is_killed"])
        .env(DIRECTORY, directory)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = 0;
    // What was said before the kill is read to the end.
    for line in BufReader::new(writer.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((_, change)) = line.split_once("ack ") else {
            continue;
        };
        let (replicas, name) = change.split_once(' ').unwrap();
        last.insert(name.to_owned(), replicas.to_owned());
        said += 1;
        if said == changes {
            writer.kill().unwrap();
        }
    }
    writer.wait().unwrap();
    assert!(said >= changes, "the writer ended by itself");
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_at_any_instant() {
    let folder = tempfile::tempdir().unwrap();
    let mut last: BTreeMap<String, String> = BTreeMap::new();
    for round in 0..ROUNDS {
        let changes = rand::rng().random_range(1..CHANGES);
        write_and_kill(folder.path(), round, changes, &mut last);
        let store = Store::open(folder.path(), options("a")).unwrap();
        assert_eq!(store.unreadable(), []);
        for (name, said) in &mut last {
            let seen = store.get(&ObjectKey::new(Kind::Deployment, "default", name.as_str()));
            let seen = seen.map_or("gone".to_owned(), |seen| {
                seen.object
                    .i64_at("/spec/replicas")
                    .unwrap_or_default()
                    .to_string()
            });
            // The change after may have been stored before the kill, and not been said any more.
            let fits = match said.as_str() {
                "3" => ["3", "7"].contains(&seen.as_str()),
                "7" => ["7", "gone"].contains(&seen.as_str()),
                _ => seen == "gone",
            };
            assert!(fits, "round {round}: {name} is {seen}, {said} was acknowledged");
            // What was under way is settled now.
            *said = seen;
        }
        store.close().await;
    }
}
