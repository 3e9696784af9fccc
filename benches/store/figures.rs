//! Times and the table that is printed in the end.

use std::time::Duration;

/// Measured times of one thing.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn extend(&mut self, other: Times) {
        self.0.extend(other.0);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that this share of all is not above (nearest rank).
    pub(crate) fn at(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// p50 and p99 in milliseconds.
    pub(crate) fn text(&self) -> String {
        format!(
            "{}, {} ms",
            milliseconds(self.at(0.5)),
            milliseconds(self.at(0.99))
        )
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        Self(times.into_iter().collect())
    }
}

pub(crate) fn milliseconds(time: Duration) -> String {
    let value = time.as_secs_f64() * 1e3;
    let digits = if value < 1.0 { 2 } else { 1 };
    format!("{value:.digits$}")
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// The table: what is measured, ours, the peer's, ours by the peer's, and the aim.
#[derive(Default)]
pub(crate) struct Table(Vec<[String; 5]>);

impl Table {
    /// Adds a row, and prints it for those who wait.
    pub(crate) fn row(&mut self, what: impl Into<String>, ours: impl Into<String>, aim: &str) {
        self.add([
            what.into(),
            ours.into(),
            "–".to_owned(),
            "–".to_owned(),
            aim.to_owned(),
        ]);
    }

    /// Adds a row of two servers' times: the ratios are those of p50 and of p99.
    pub(crate) fn beside(&mut self, what: impl Into<String>, ours: &Times, peer: &Times, aim: &str) {
        let ratio = |share| ours.at(share).as_secs_f64() / peer.at(share).as_secs_f64().max(1e-9);
        self.add([
            what.into(),
            ours.text(),
            peer.text(),
            format!("{:.2}, {:.2}", ratio(0.5), ratio(0.99)),
            aim.to_owned(),
        ]);
    }

    /// Adds a row of two numbers.
    pub(crate) fn numbers(&mut self, what: impl Into<String>, ours: f64, peer: f64, unit: &str, aim: &str) {
        self.add([
            what.into(),
            format!("{ours:.1}{unit}"),
            format!("{peer:.1}{unit}"),
            format!("{:.2}", ours / peer.max(1e-9)),
            aim.to_owned(),
        ]);
    }

    /// Adds a row of two texts and the ratio of what they say.
    pub(crate) fn texts(
        &mut self,
        what: impl Into<String>,
        ours: impl Into<String>,
        peer: impl Into<String>,
        ratio: f64,
    ) {
        self.add([
            what.into(),
            ours.into(),
            peer.into(),
            format!("{ratio:.2}"),
            String::new(),
        ]);
    }

    fn add(&mut self, row: [String; 5]) {
        eprintln!("{}", row.join(" | "));
        self.0.push(row);
    }

    pub(crate) fn print(&self) {
        println!("\n| what | ours | etcd | ratio | aim |");
        println!("|---|---|---|---|---|");
        for row in &self.0 {
            println!("| {} |", row.join(" | "));
        }
    }
}
