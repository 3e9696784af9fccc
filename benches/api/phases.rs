//! What is done with a namespace of ConfigMaps, phase by phase.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Method;
use serde_json::json;

use crate::MANY;
use crate::connection::{Api, Call};
use crate::load::{Requests, all_do};
use crate::objects;
use crate::report::{Peer, Report};
use crate::wanted::Wanted;
use crate::watch;

/// ConfigMaps that one client makes, and then that many clients make.
const OBJECTS: usize = 2_000;
const READS: usize = 8_000;
const LISTS: usize = 30;
/// How long a namespace may take to go: its objects are removed one by one.
const REMOVED_WITHIN: Duration = Duration::from_secs(300);

/// A namespace of one run.
pub(crate) struct Run<'a> {
    api: &'a Api,
    pub(crate) namespace: String,
}

impl<'a> Run<'a> {
    pub(crate) fn new(api: &'a Api) -> Self {
        Self {
            api,
            namespace: format!("api-bench-{:08x}", rand::random::<u32>()),
        }
    }

    /// Makes the namespace and its objects, and runs the phases that are wanted and leave them there.
    ///
    /// # Errors
    /// What all needs cannot be made. What else fails is in the report.
    pub(crate) async fn fill_and_use(&self, wanted: &Wanted, report: &mut Report) -> Result<()> {
        eprintln!("namespace {}", self.namespace);
        let connection = self.api.connection();
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}});
        let made = Call {
            body: Bytes::from(body.to_string()),
            ..Call::bare(Method::POST, objects::NAMESPACES)
        };
        connection.call(made).await.context("no namespace")?;
        for phase in fill() {
            self.phase(&phase, report).await?;
        }
        for phase in reads_and_changes()
            .iter()
            .filter(|phase| wanted.has(phase.section))
        {
            self.phase(phase, report).await?;
        }
        if wanted.has("list") {
            let listed = connection.read(&objects::path(&self.namespace)).await?;
            let listed = listed["items"].as_array().map_or(0, Vec::len);
            self.phase(&list(listed), report).await?;
        }
        if wanted.has("watch") {
            let what = format!(
                "watch delivery to {} watchers of {} writes, from their sending",
                watch::WATCHERS,
                watch::WRITES
            );
            let seen = watch::delivery(self.api, &self.namespace)
                .await
                .context("watches")?;
            report.row(&what, &seen.events, Peer::times(2.0, 5.0));
            report.row(
                "those writes themselves, merge patches",
                &seen.writes,
                Peer::default(),
            );
        }
        Ok(())
    }

    /// Removes the second half of the objects one by one.
    ///
    /// # Errors
    /// The clients cannot connect. What else fails is in the report.
    pub(crate) async fn delete(&self, report: &mut Report) -> Result<()> {
        let delete = Phase {
            section: "delete",
            what: "delete".to_owned(),
            clients: MANY,
            count: OBJECTS,
            peer: Peer::default(),
            make: |namespace, number| objects::delete(namespace, OBJECTS + number),
        };
        self.phase(&delete, report).await
    }

    /// Runs a phase from the moment when all clients are connected.
    async fn phase(&self, phase: &Phase, report: &mut Report) -> Result<()> {
        let (namespace, make) = (self.namespace.clone(), phase.make);
        let make = Arc::new(move |number: usize| make(&namespace, number));
        let mut deeds = Vec::new();
        for _ in 0..phase.clients {
            let connection = self.api.connection();
            let path = format!("{}/{}", objects::NAMESPACES, self.namespace);
            connection.read(&path).await.context("a client's first request")?;
            deeds.push(Requests {
                connection,
                make: make.clone(),
            });
        }
        let outcome = all_do(deeds, phase.count).await;
        let plural = if phase.clients == 1 { "client" } else { "clients" };
        let what = format!("{}, {} {plural}", phase.what, phase.clients);
        report.row(&what, &outcome, phase.peer);
        Ok(())
    }

    /// Removes the namespace with all that is in it, and waits until it is gone; none is none to remove.
    ///
    /// # Errors
    /// It cannot be removed, or is still there after five minutes.
    pub(crate) async fn remove(&self) -> Result<()> {
        let connection = self.api.connection();
        let path = format!("{}/{}", objects::NAMESPACES, self.namespace);
        let deadline = Instant::now() + REMOVED_WITHIN;
        let mut method = Method::DELETE;
        loop {
            match connection.call(Call::bare(method, &path)).await {
                Ok(_) => {}
                Err(error) if error.to_string().contains(": 404 ") => return Ok(()),
                Err(error) => return Err(error),
            }
            if Instant::now() > deadline {
                bail!("it is not gone after {REMOVED_WITHIN:?}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            method = Method::GET;
        }
    }
}

/// What some clients do at the same time.
struct Phase {
    section: &'static str,
    what: String,
    clients: usize,
    /// Requests of all clients together.
    count: usize,
    peer: Peer,
    /// Makes the request of a number, in a namespace.
    make: fn(&str, usize) -> Call,
}

fn fill() -> [Phase; 2] {
    [
        Phase {
            section: "create",
            what: "create".to_owned(),
            clients: 1,
            count: OBJECTS,
            peer: Peer::times(1.6, 6.3),
            make: objects::create,
        },
        Phase {
            section: "create",
            what: "create".to_owned(),
            clients: MANY,
            count: OBJECTS,
            peer: Peer::load(1_535.0, Some(33.0)),
            make: |namespace, number| objects::create(namespace, OBJECTS + number),
        },
    ]
}

/// Each change is of another key of each object.
fn reads_and_changes() -> [Phase; 4] {
    let many = |section, what: &str, count, peer, make| Phase {
        section,
        what: what.to_owned(),
        clients: MANY,
        count,
        peer,
        make,
    };
    [
        many(
            "get",
            "GET",
            READS,
            Peer::load(3_096.0, Some(12.0)),
            // One after the other in time are not neighbours in order.
            |namespace, number| objects::get(namespace, number * 997 % (2 * OBJECTS)),
        ),
        many(
            "merge",
            "merge patch",
            OBJECTS,
            Peer::load(1_138.0, None),
            |namespace, number| objects::merge_patch(namespace, number, &json!({"merged": "1"})),
        ),
        many(
            "apply",
            "server-side apply",
            OBJECTS,
            Peer::load(979.0, None),
            |namespace, number| objects::apply(namespace, number, &json!({"applied": "1"})),
        ),
        many(
            "strategic",
            "strategic merge patch",
            OBJECTS,
            Peer::default(),
            |namespace, number| objects::strategic_patch(namespace, number, &json!({"strategic": "1"})),
        ),
    ]
}

fn list(listed: usize) -> Phase {
    Phase {
        section: "list",
        what: format!("list of {listed} objects"),
        clients: 1,
        count: LISTS,
        peer: Peer {
            p50_ms: Some(42.0),
            ..Peer::default()
        },
        make: |namespace, _| objects::list(namespace),
    }
}
