//! etcd's own puts of the same bytes: what a durable write costs on this machine at this time.

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;

use crate::client::{Client, Server};
use crate::load::{Deed, Outcome, all_do};
use crate::objects;

/// Puts by one client, and by many together.
const PUTS: [usize; 2] = [500, 2_000];

/// Puts over one connection.
struct Puts(Client);

impl Deed for Puts {
    async fn run(&mut self, number: usize) -> Result<Duration> {
        let name = format!("bench-{number}");
        let object = Bytes::from(objects::object(number).to_string());
        let start = Instant::now();
        self.0.create(&name, object).await;
        Ok(start.elapsed())
    }
}

/// Puts by one client and by `many`. The run ends if one fails.
pub(crate) async fn puts(etcd: &Server, many: usize) -> [Outcome; 2] {
    let mut outcomes = <[Outcome; 2]>::default();
    for ((outcome, clients), count) in outcomes.iter_mut().zip([1, many]).zip(PUTS) {
        let clients = Client::open_many(etcd, clients).await;
        *outcome = all_do(clients.into_iter().map(Puts).collect(), count).await;
    }
    outcomes
}
