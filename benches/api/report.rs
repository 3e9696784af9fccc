//! The table of a run, each line beside what kube-apiserver with etcd took.

use std::collections::BTreeMap;

use crate::figures::milliseconds;
use crate::load::Outcome;

/// How many different failures of a line are printed.
const SHOWN_FAILURES: usize = 5;

/// kube-apiserver with etcd on a machine of the class of these figures', orientation only: parts are not known.
#[derive(Clone, Copy, Default)]
pub(crate) struct Peer {
    pub(crate) per_second: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
}

/// Memory of kube-apiserver and etcd together, idle, of the same orientation, MB.
pub(crate) const PEER_MEMORY_MB: f64 = 300.0;

impl Peer {
    pub(crate) fn times(p50_ms: f64, p99_ms: f64) -> Self {
        Self {
            per_second: None,
            p50_ms: Some(p50_ms),
            p99_ms: Some(p99_ms),
        }
    }

    pub(crate) fn load(per_second: f64, p99_ms: Option<f64>) -> Self {
        Self {
            per_second: Some(per_second),
            p50_ms: None,
            p99_ms,
        }
    }

    /// What is known, and ours by each of it.
    fn texts(self, ours: &Outcome) -> (String, String) {
        let milliseconds = |share| ours.times.at(share).as_secs_f64() * 1e3;
        let parts = [
            (self.per_second, "per second", ours.per_second()),
            (self.p50_ms, "p50", milliseconds(0.5)),
            (self.p99_ms, "p99", milliseconds(0.99)),
        ];
        let known = parts
            .iter()
            .filter_map(|(peer, what, ours)| peer.map(|peer| (peer, what, ours / peer)));
        let (theirs, ratios): (Vec<String>, Vec<String>) = known
            .map(|(peer, what, ratio)| (format!("{what} {peer}"), format!("{what} {ratio:.2}")))
            .unzip();
        if theirs.is_empty() {
            return ("–".to_owned(), "–".to_owned());
        }
        (theirs.join(", "), ratios.join(", "))
    }
}

/// What is printed in the end.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<String>,
    notes: Vec<String>,
    failures: usize,
}

impl Report {
    /// Adds a line, and prints it for those who wait, with what failed.
    pub(crate) fn row(&mut self, what: &str, outcome: &Outcome, peer: Peer) {
        let times = &outcome.times;
        let (theirs, ratios) = peer.texts(outcome);
        let row = format!(
            "| {what} | {} | {:.0} | {} | {} | {} | {} | {:.2} | {theirs} | {ratios} |",
            times.count(),
            outcome.per_second(),
            milliseconds(times.at(0.5)),
            milliseconds(times.at(0.99)),
            milliseconds(times.at(1.0)),
            outcome.failures.len(),
            outcome.own_cpu.as_secs_f64() / outcome.elapsed.as_secs_f64().max(1e-9),
        );
        eprintln!("{row}");
        self.rows.push(row);
        self.failed(what, &outcome.failures);
    }

    /// Adds a sentence below the table.
    pub(crate) fn note(&mut self, text: String) {
        eprintln!("{text}");
        self.notes.push(text);
    }

    /// Counts failures of something, and prints the most frequent.
    pub(crate) fn failed(&mut self, what: &str, failures: &[String]) {
        self.failures += failures.len();
        let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
        for failure in failures {
            *counted.entry(failure).or_default() += 1;
        }
        let mut counted: Vec<_> = counted.into_iter().collect();
        counted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (failure, count) in counted.iter().take(SHOWN_FAILURES) {
            eprintln!("{what}: failed {count} times: {failure}");
        }
        if counted.len() > SHOWN_FAILURES {
            eprintln!("{what}: and {} other failures", counted.len() - SHOWN_FAILURES);
        }
    }

    /// Prints all; returns how much failed.
    pub(crate) fn print(&self) -> usize {
        println!(
            "\n| what | done | per second | p50 ms | p99 ms | max ms | failed | cores of the client | kube-apiserver with etcd (orientation) | ours by that |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        for row in &self.rows {
            println!("{row}");
        }
        println!();
        for note in &self.notes {
            println!("{note}  ");
        }
        self.failures
    }
}
