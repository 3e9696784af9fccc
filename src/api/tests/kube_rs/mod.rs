//! kube-rs against the listener, over TLS with a token: its client, watchers, controllers and sessions, as operators use them.
//! No controllers of ours run.

mod controller;
mod discovery;
mod objects;
mod sessions;
mod watching;

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::fixture::Api as Node;
use super::listener::Served;
use crate::api::{PlainHttp, admin_kubeconfig, create_token};

/// Far more than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// A node behind its listener, and a client that was made from the administrator's kubeconfig.
struct Swarm {
    node: Node,
    served: Served,
    client: Client,
}

impl Swarm {
    async fn start() -> Self {
        Self::of([Node::named("n1", true).await]).await.0
    }

    /// The first of two nodes that know the same token, and the second, which nobody asks yet.
    async fn with_another() -> (Self, Node) {
        let nodes = [Node::named("n1", true).await, Node::named("n2", true).await];
        let (swarm, mut others) = Self::of(nodes).await;
        (swarm, others.pop().unwrap())
    }

    async fn of<const N: usize>(nodes: [Node; N]) -> (Self, Vec<Node>) {
        let (token, secret) = create_token("admin", None);
        for node in &nodes {
            let author = node.state.author("test", "");
            node.state.store.create(token.clone(), author).await.unwrap();
        }
        let mut nodes = nodes.into_iter();
        let node = nodes.next().unwrap();
        let served = Served::start(&node, PlainHttp::Off).await;
        let client = client(&served, &secret).await;
        let swarm = Self { node, served, client };
        (swarm, nodes.collect())
    }

    /// The objects of a kind in the namespace `default`.
    fn all<K>(&self) -> kube::Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        kube::Api::default_namespaced(self.client.clone())
    }
}

async fn client(served: &Served, secret: &str) -> Client {
    let server = format!("https://{}", served.address);
    let kubeconfig = admin_kubeconfig(&server, &served.certificate_pem, secret);
    let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.unwrap()).unwrap()
}

/// An object of a type, from what people write.
fn typed<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str, labels: Value, data: Value) -> ConfigMap {
    typed(json!({"metadata": {"name": name, "labels": labels}, "data": data}))
}

/// What the API answered instead, as kube-rs reads it.
#[track_caller]
fn refused<T: Debug>(result: kube::Result<T>) -> Status {
    match result {
        Err(kube::Error::Api(status)) => {
            assert!(status.is_failure(), "{status:?}");
            *status
        }
        other => panic!("{other:?}"),
    }
}

/// Fails where `future` takes too long.
async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(DEADLINE, future).await;
    done.unwrap_or_else(|_| panic!("not in time: {what}"))
}
