//! Watch delivery: how long after a write was sent each of several watchers has its event.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::BytesMut;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::connection::{Api, Call};
use crate::load::{Outcome, own_cpu};
use crate::objects;

pub(crate) const WATCHERS: usize = 10;
/// Writes, each after the one before was seen by all.
pub(crate) const WRITES: usize = 500;
/// How long an event may take before it counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// The key under which a write says its number.
const KEY: &str = "watched";

/// An event of a write, and when it was there.
struct Seen {
    watcher: usize,
    write: usize,
    at: Instant,
}

/// What came of the events, and of the writes that they are of.
#[derive(Default)]
pub(crate) struct Delivery {
    pub(crate) events: Outcome,
    pub(crate) writes: Outcome,
}

/// Changes objects that exist while watchers look at the namespace; all times are from the sending of a write.
///
/// # Errors
/// The watches cannot be begun. What fails later is in what is returned.
pub(crate) async fn delivery(api: &Api, namespace: &str) -> Result<Delivery> {
    let path = objects::path(namespace);
    let writer = api.connection();
    let list = writer.read(&format!("{path}?limit=1")).await?;
    let version = list["metadata"]["resourceVersion"]
        .as_str()
        .context("the list has no resourceVersion")?;
    let (sender, mut seen) = mpsc::unbounded_channel();
    let mut watchers = JoinSet::new();
    for watcher in 0..WATCHERS {
        let connection = api.connection();
        let path = format!("{path}?watch=true&resourceVersion={version}&timeoutSeconds=600");
        // The watch is on once the head of its answer is there.
        let answer = connection.begin(Call::bare(Method::GET, path)).await?;
        let sender = sender.clone();
        watchers.spawn(async move {
            // The connection lives as long as the watch.
            let _connection = connection;
            let ended = follow(answer.into_body(), watcher, &sender).await;
            ended.with_context(|| format!("watcher {watcher}"))
        });
    }
    drop(sender);
    let Delivery {
        mut events,
        mut writes,
    } = Delivery::default();
    let (began, spent) = (Instant::now(), own_cpu());
    for write in 0..WRITES {
        let call = objects::merge_patch(namespace, write, &json!({KEY: write.to_string()}));
        let sent = Instant::now();
        let answered = writer.call(call).await.map(|_| sent.elapsed());
        let is_written = answered.is_ok();
        writes.push(answered);
        if !is_written {
            break;
        }
        let lost = sent + LOST_AFTER;
        let mut missing: Vec<usize> = (0..WATCHERS).collect();
        while !missing.is_empty() {
            match tokio::time::timeout_at(lost.into(), seen.recv()).await {
                Ok(Some(event)) if event.write == write => {
                    missing.retain(|watcher| *watcher != event.watcher);
                    events.push(Ok(event.at.saturating_duration_since(sent)));
                }
                // One that was late, and is counted as lost already.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        for watcher in &missing {
            let error = anyhow!("write {write} was not seen by watcher {watcher} within {LOST_AFTER:?}");
            events.push(Err(error));
        }
        // Nobody is left who could see more, or the server is too slow to be waited for.
        if missing.len() == WATCHERS {
            break;
        }
    }
    for outcome in [&mut events, &mut writes] {
        outcome.elapsed = began.elapsed();
        outcome.own_cpu = own_cpu().saturating_sub(spent);
    }
    while let Some(ended) = watchers.try_join_next() {
        events.push(ended.context("a watcher").and_then(|ended| {
            ended?;
            Err(anyhow!("a watch ended by itself"))
        }));
    }
    Ok(Delivery { events, writes })
}

/// Reads events, a line of JSON each, until the stream ends.
async fn follow(mut body: Incoming, watcher: usize, sender: &mpsc::UnboundedSender<Seen>) -> Result<()> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let at = Instant::now();
        let Ok(data) = frame?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            if let Some(write) = write_of(&line)? {
                _ = sender.send(Seen { watcher, write, at });
            }
        }
    }
    Ok(())
}

/// The number of the write that an event is of; None for one of another kind.
fn write_of(line: &[u8]) -> Result<Option<usize>> {
    let event: Value = serde_json::from_slice(line).context("an event is not JSON")?;
    match event["type"].as_str() {
        Some("MODIFIED") => Ok(event["object"]["data"][KEY]
            .as_str()
            .and_then(|number| number.parse().ok())),
        Some("ERROR") => bail!("the server ended the watch: {}", event["object"]),
        _ => Ok(None),
    }
}
