//! Workers that do the same thing again and again, side by side, and what is known of it afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::connection::{Call, Connection};
use crate::figures::Times;
use crate::host::cpu_time;

/// A worker that has failed as often in a row gives up: a server that is gone need not be asked 2,000 times.
const GIVES_UP_AFTER: usize = 10;

/// What one worker does, with a connection of its own.
pub(crate) trait Deed: Send + 'static {
    /// Does the one of this number; returns how long it took.
    fn run(&mut self, number: usize) -> impl Future<Output = Result<Duration>> + Send;
}

/// What came of a load.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Of what succeeded.
    pub(crate) times: Times,
    /// Why each of the others did not.
    pub(crate) failures: Vec<String>,
    /// From the first beginning to the last end.
    pub(crate) elapsed: Duration,
    /// What this process, the client, spent meanwhile, in all its threads.
    pub(crate) own_cpu: Duration,
}

impl Outcome {
    pub(crate) fn push(&mut self, result: Result<Duration>) {
        match result {
            Ok(time) => self.times.push(time),
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }

    /// Adds another load of the same kind, which ran at another time.
    pub(crate) fn extend(&mut self, other: Outcome) {
        self.times.extend(other.times);
        self.failures.extend(other.failures);
        self.elapsed += other.elapsed;
        self.own_cpu += other.own_cpu;
    }

    /// Successes in a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.times.count() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Has the workers do the deeds with numbers below `count`, each every so manieth, all from one moment on.
pub(crate) async fn all_do<D: Deed>(deeds: Vec<D>, count: usize) -> Outcome {
    let workers = deeds.len();
    let start = Arc::new(Barrier::new(workers + 1));
    let mut running = JoinSet::new();
    for (worker, mut deed) in deeds.into_iter().enumerate() {
        let start = start.clone();
        running.spawn(async move {
            start.wait().await;
            let mut outcome = Outcome::default();
            let mut in_a_row = 0;
            for number in (worker..count).step_by(workers) {
                if in_a_row == GIVES_UP_AFTER {
                    outcome.push(Err(anyhow!("not tried after {in_a_row} failures in a row")));
                    continue;
                }
                let result = deed.run(number).await;
                in_a_row = if result.is_ok() { 0 } else { in_a_row + 1 };
                outcome.push(result);
            }
            outcome
        });
    }
    let spent = own_cpu();
    start.wait().await;
    let began = Instant::now();
    let mut all = Outcome::default();
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(outcome) => all.extend(outcome),
            Err(error) => all.failures.push(format!("a worker: {error}")),
        }
    }
    all.elapsed = began.elapsed();
    all.own_cpu = own_cpu().saturating_sub(spent);
    all
}

/// The processor time of this process so far.
pub(crate) fn own_cpu() -> Duration {
    cpu_time(&std::fs::read_to_string("/proc/self/stat").unwrap_or_default())
}

/// Makes the request of a number.
pub(crate) type Make = Arc<dyn Fn(usize) -> Call + Send + Sync>;

/// Requests over one connection, each timed from before it is sent until its answer is read.
pub(crate) struct Requests {
    pub(crate) connection: Connection,
    pub(crate) make: Make,
}

impl Deed for Requests {
    async fn run(&mut self, number: usize) -> Result<Duration> {
        let call = (self.make)(number);
        let start = Instant::now();
        self.connection.call(call).await?;
        Ok(start.elapsed())
    }
}
