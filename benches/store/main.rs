//! Figures of the store, beside etcd's where etcd has such a thing: `make bench`, `BENCH=write,read` for some.
//!
//! Agents and etcd run on one host of the tests' harness, on one file system, and get the same bytes through their
//! network API with TLS, turn and turn about. Read the ratios: one machine's milliseconds say little about another's.

mod client;
#[path = "../../tests/it/cluster.rs"]
#[allow(
    dead_code,
    unused_macros,
    unused_imports,
    reason = "the harness is shared; not all of it is used here"
)]
mod cluster;
mod etcd;
mod fifty;
mod figures;
mod host;
mod single;
mod three;
mod wanted;

use std::time::Instant;

use futures::future::join_all;

use client::Client;
use figures::{Table, Times};
pub(crate) use host::{AGENT, QUIET, agent, cpu_time, memory_of, on_the_lan, pid_of, resident_bytes};
pub(crate) use wanted::Wanted;

const FIFTY: &str = "fifty";
/// The sections, in the order in which those of real hosts run.
const SECTIONS: [&str; 13] = [
    "size", "read", "list", "load", "join", "write", "syncs", "visible", "wire", "idle", "away", "churn",
    FIFTY,
];

fn main() {
    let wanted = Wanted::from_environment(&SECTIONS);
    let mut table = Table::default();
    if wanted.has(FIFTY) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(fifty::run(&mut table));
    }
    match cluster::unable() {
        Some(reason) => eprintln!("only `{FIFTY}`, others need hosts: {reason}"),
        None => {
            let start = Instant::now();
            if wanted.any(&["size", "read", "list", "write", "syncs", "load", "join"]) {
                single::beside_etcd(&wanted, &mut table);
            }
            if wanted.any(&["visible", "wire", "idle", "away"]) {
                three::run(&wanted, &mut table);
            }
            if wanted.has("churn") {
                single::churn(&mut table);
            }
            eprintln!("{:.0?} in all", start.elapsed());
        }
    }
    table.print();
}

/// What each writer does with a name and a number.
#[derive(Clone, Copy)]
pub(crate) enum Deed {
    Create,
    Update,
    Read,
}

/// Has every client do a share of `count` deeds at a time with the others, each one after the other; returns how long each took.
pub(crate) async fn all_do(
    clients: &mut [Client],
    deed: Deed,
    count: usize,
    name: &(dyn Fn(usize) -> String + Sync),
    version: usize,
) -> Times {
    let share = count / clients.len();
    let running = clients.iter_mut().enumerate().map(|(index, client)| async move {
        let mut times = Times::default();
        for number in index * share..(index + 1) * share {
            let name = name(number);
            let object = client::object(&name, version);
            let start = Instant::now();
            match deed {
                Deed::Create => client.create(&name, object).await,
                Deed::Update => client.update(&name, object).await,
                Deed::Read => assert!(client.read(&name).await >= client::OBJECT_BYTES),
            }
            times.push(start.elapsed());
        }
        times
    });
    let mut all = Times::default();
    join_all(running)
        .await
        .into_iter()
        .for_each(|times| all.extend(times));
    all
}
