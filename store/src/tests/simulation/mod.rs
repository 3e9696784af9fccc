//! Up to 50 stores in one process and in virtual time: random writes on all of them, over a network that delays, loses,
//! doubles, reorders and parts, on disks that lose what was not synced, tear the last write, fail and fill up, with clocks
//! that jump and drift, and nodes that crash, come and are removed. After the heal all must be equal, and nothing that
//! users were told may be untrue (`model.rs`).
//!
//! A seed decides everything: a failing one is printed, and `SEED=n cargo test -p store simulation -- --nocapture` replays it
//! and tells what happened. `SEEDS=n` runs so many, `FIRST_SEED=n` others; the run ends when `FAILURES=n` of them have failed.
//!
//! Read `world.rs` first; then `operations.rs` for what users do, `trouble.rs` for what goes wrong, `model.rs` for what is
//! allowed.

mod agreement;
mod model;
mod node;
mod operations;
mod trouble;
mod watching;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use schemas::hex;
use sha2::Digest;

use self::world::{Counters, World};

/// Of a run of the tests without `SEEDS`.
const SEEDS: u64 = 20;
/// Each seed does so many operations.
const OPERATIONS: usize = 500;
/// Every so many seeds one has many nodes.
const LARGE_EVERY: u64 = 100;
const LARGE_NODES: u64 = 50;
/// After so many that fail a run ends, without `FAILURES`.
const FAILURES: u64 = 5;
/// What must have happened in every run of this many seeds or more.
const COUNTED_FROM: u64 = 20;
const MUST_HAPPEN: [&str; 30] = [
    "changes of earlier epochs delivered",
    "conditional writes",
    "conditional writes refused",
    "conflicts told",
    "crashes",
    "clock jumps",
    "epoch changes",
    "failing disks",
    "full disks",
    "histories squashed",
    "joiners in step",
    "joins",
    "messages doubled",
    "messages lost",
    "nodes away from squashes",
    "nodes removed",
    "objects of removed namespaces collected",
    "operations",
    "owned objects collected",
    "partitions",
    "rescued by stale nodes",
    "rescued from deletions",
    "rounds closed",
    "seeds with clocks that drifted apart",
    "stale catch-ups",
    "tombstones dropped",
    "torn writes",
    "writes acknowledged",
    "writes refused by full disks",
    "writes without an answer",
];

/// What came of a seed.
struct Run {
    result: Result<(), String>,
    counters: Counters,
    /// Of all that happened.
    trace: String,
    log: String,
}

fn nodes(seed: u64) -> usize {
    let nodes = if seed % LARGE_EVERY == LARGE_EVERY - 1 {
        LARGE_NODES
    } else {
        3 + seed % 6
    };
    usize::try_from(nodes).unwrap_or(3)
}

fn run(seed: u64, is_logged: bool) -> Run {
    let mut world = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(seed, nodes(seed), OPERATIONS, is_logged));
        world.run().and_then(|()| world.end())
    }));
    let result = result.unwrap_or_else(|_| Err("it panicked".to_owned()));
    let Some(world) = world else {
        return Run {
            result,
            counters: Counters::default(),
            trace: String::new(),
            log: String::new(),
        };
    };
    Run {
        result,
        counters: world.counters,
        trace: hex(&world.trace.finalize()),
        log: world.log.unwrap_or_default(),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn what_users_were_told_stays_true() {
    if let Some(seed) = number("SEED") {
        let Run {
            result,
            counters,
            trace,
            log,
        } = run(seed, true);
        println!(
            "{log}{counters:#?}\nseed {seed}, {} nodes, trace {trace}",
            nodes(seed)
        );
        return result.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    let began = Instant::now();
    let first = number("FIRST_SEED").unwrap_or_default();
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let failures_max = number("FAILURES").unwrap_or(FAILURES);
    let next = AtomicU64::new(first);
    let totals = Mutex::new(Counters::default());
    let failures = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || failures.lock().unwrap().len() as u64 >= failures_max {
                        return;
                    }
                    let Run { result, counters, .. } = run(seed, false);
                    let mut totals = totals.lock().unwrap();
                    counters
                        .0
                        .into_iter()
                        .for_each(|(what, count)| totals.add(what, count));
                    if let Err(failure) = result {
                        println!(
                            "seed {seed} ({} nodes) failed after {:?}: {failure}",
                            nodes(seed),
                            began.elapsed()
                        );
                        failures.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap();
    println!("{seeds} seeds from {first} in {:?}: {totals:#?}", began.elapsed());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "replay with SEED={}", failures[0]);
    if seeds >= COUNTED_FROM {
        let never: Vec<&str> = MUST_HAPPEN
            .into_iter()
            .filter(|what| !totals.0.contains_key(what))
            .collect();
        assert_eq!(never, Vec::<&str>::new(), "never happened in {seeds} seeds");
    }
}

#[test]
fn a_seed_replays() {
    for seed in [1, 5] {
        let (once, again) = (run(seed, false), run(seed, false));
        assert_eq!(
            (once.trace, once.counters),
            (again.trace, again.counters),
            "seed {seed}"
        );
    }
}
