//! [`ApiState`]: what handlers share, and the router over all of it.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post};
use reconcilers::ports::{Clock, Cluster, ContainerRuntime, Liveness};
use schemas::{Kind, ObjectKey};
use store::{Author, NodeId, Store, Via};
use tokio::sync::{mpsc, watch};

use super::auth;
use super::backups::{self, BackupSource};
use super::events::Events;
use super::metrics::Metrics;
use super::resources::history;
use super::status::ApiError;
use super::streams::Sessions;
use super::{
    discovery, gzip, health, manifests, metrics, native, openapi, resources, restore, reviews, tokens, unread,
};
use crate::caller::Caller;
use crate::relay::Relay;

/// What the API works with. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    pub store: Store,
    /// What gossip shows of the nodes.
    pub cluster: watch::Receiver<Arc<Cluster>>,
    /// This node.
    pub node: NodeId,
    /// The way to other nodes: logs of their pods, their events and metrics.
    pub relay: Arc<dyn Relay>,
    /// This node's containers, for logs, sessions and metrics.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// What goes on in them for clients, or is relayed.
    pub sessions: Sessions,
    /// What was measured last.
    pub metrics: Arc<Metrics>,
    pub clock: Arc<dyn Clock>,
    /// This node's events.
    pub events: Arc<Events>,
    /// False: everyone may do everything (`--enable-api-auth=false`).
    pub auth_required: bool,
    /// Version of the agent (`0.1.0`) and of its source (`abcdef0`), for `/version`.
    pub build: Build,
    /// What the agent still waits for, in words; empty: ready.
    pub readiness: watch::Receiver<Vec<String>>,
    /// Where backups of this node are from, and their key.
    pub backups: BackupSource,
    /// Asks the agent to take this node out of the cluster.
    pub leave: mpsc::Sender<()>,
}

/// Characters of the id of a node whose name nobody knows any more.
const NODE_ID_SHOWN: usize = 12;

/// Which program this is.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    pub version: &'static str,
    pub git_commit: &'static str,
}

impl ApiState {
    /// The author of a write other than an apply: field manager, user and time.
    pub(crate) fn author(&self, manager: &str, user: &str) -> Author {
        Author {
            manager: manager.to_owned(),
            user: user.to_owned(),
            via: Via::Api,
            unix_seconds: self.clock.unix_seconds(),
        }
    }

    /// Finds a node by its name (`spec.nodeName`).
    pub(crate) fn node_named(&self, name: &str) -> Option<NodeId> {
        let cluster = self.cluster.borrow();
        cluster
            .nodes
            .iter()
            .find(|(_, node)| node.facts.name == name)
            .map(|(id, _)| id.clone())
    }

    /// Returns a node's name, also of one that is silent; of one that is no member, the beginning of its id.
    pub(crate) fn node_name(&self, id: &NodeId) -> String {
        let seen = self
            .cluster
            .borrow()
            .nodes
            .get(id)
            .map(|node| node.facts.name.clone());
        let member = || {
            let view = self.store.get(&ObjectKey::cluster(Kind::Member, &id.0))?;
            Some(view.object.str_at("/spec/name").to_owned())
        };
        let named = seen.filter(|name| !name.is_empty()).or_else(member);
        named
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| id.0.chars().take(NODE_ID_SHOWN).collect())
    }

    /// The other nodes whose agents answer.
    pub(crate) fn live_peers(&self) -> Vec<NodeId> {
        let cluster = self.cluster.borrow();
        cluster
            .nodes
            .iter()
            .filter(|(id, node)| **id != self.node && node.liveness == Liveness::Alive)
            .map(|(id, _)| id.clone())
            .collect()
    }
}

/// Makes the service of the whole API. A request that carries [`Caller::Peer`] as an extension (from the peer port)
/// is trusted; every other one proves itself by a bearer token.
pub fn router(state: ApiState) -> Router {
    // Native paths by their own routes; every other path is Kubernetes' and is read against the kind table.
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/healthz", get(health::ready))
        .route("/livez/ping", get(health::ping))
        .route("/readyz/ping", get(health::ping))
        .route("/healthz/ping", get(health::ping))
        .route("/version", get(discovery::version))
        .route("/version/", get(discovery::version))
        .route("/api", get(discovery::api_versions))
        .route("/apis", get(discovery::groups))
        .route("/apis/{group}", get(discovery::group))
        .route("/apis/{group}/{version}", get(discovery::group_resources))
        .route("/api/v1", get(discovery::core_resources))
        // As clients that are made from the OpenAPI document ask.
        .route("/api/", get(discovery::api_versions))
        .route("/apis/", get(discovery::groups))
        .route("/apis/{group}/", get(discovery::group))
        .route("/apis/{group}/{version}/", get(discovery::group_resources))
        .route("/api/v1/", get(discovery::core_resources))
        .route(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            post(reviews::whoami),
        )
        .route(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            post(reviews::access),
        )
        .route(
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            post(reviews::rules),
        )
        .route("/apis/metrics.k8s.io/v1beta1/{*path}", get(metrics::metrics))
        .route("/openapi/v2", get(openapi::v2))
        .route("/openapi/v3", get(openapi::v3_index))
        .route("/openapi/v3/{*path}", get(openapi::v3_group))
        .route("/api/v1/health", get(health::health))
        .route("/api/v1/manifests", post(manifests::apply))
        .route(
            "/api/v1/manifests/{name}",
            delete(manifests::delete_cluster_scoped),
        )
        .route(
            "/api/v1/manifests/{namespace}/{name}",
            delete(manifests::delete_namespaced),
        )
        .route("/api/v1/deployments", get(native::list_deployments))
        .route(
            "/api/v1/deployments/{namespace}/{name}",
            get(native::get_deployment),
        )
        .route("/api/v1/pods/{namespace}/{name}", get(native::get_pod))
        .route(
            "/api/v1/services/{namespace}/{name}/endpoints",
            get(native::endpoints),
        )
        .route(
            "/api/v1/services/{namespace}/{name}/addresses",
            get(native::addresses),
        )
        .route(
            "/api/v1/dns/whitelist",
            get(native::get_whitelist).put(native::put_whitelist),
        )
        .route("/api/v1/dns/whitelist/hosts", post(native::add_whitelist_host))
        .route(
            "/api/v1/dns/whitelist/hosts/{host}",
            delete(native::remove_whitelist_host),
        )
        .route(
            "/api/v1/history/{resource}/{namespace}/{name}",
            get(history::list).post(history::undo),
        )
        .route(
            "/api/v1/history/{resource}/{namespace}/{name}/diff",
            get(history::diff),
        )
        .route("/api/v1/backup", get(backups::backup))
        .route("/api/v1/restore", post(restore::restore))
        .route("/api/v1/leave", post(native::leave))
        .route("/api/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/api/v1/tokens/{token}", delete(tokens::delete))
        .route("/", any(root))
        .fallback(kubernetes)
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed().into_response() })
        .layer(axum::middleware::from_fn(gzip::compress))
        .layer(axum::middleware::from_fn_with_state(state.clone(), auth::check))
        .layer(axum::middleware::from_fn(unread::drain))
        .with_state(state)
}

async fn root() -> Response {
    axum::Json(serde_json::json!({
        "paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"],
    }))
    .into_response()
}

async fn kubernetes(State(state): State<ApiState>, request: Request) -> Response {
    resources::handle(&state, request)
        .await
        .unwrap_or_else(ApiError::into_response)
}

/// The user's name as it is written beside changes: the token's name; empty when nobody proved anything.
pub(crate) fn user_of(extensions: &http::Extensions, headers: &http::HeaderMap) -> String {
    match extensions.get::<Caller>() {
        Some(Caller::Token(name)) => name.clone(),
        Some(Caller::Peer(_)) => headers
            .get(auth::RELAYED_USER)
            // Names of tokens are any text.
            .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
            .unwrap_or_default()
            .to_owned(),
        Some(Caller::Anonymous) | None => String::new(),
    }
}
