//! metrics.k8s.io: what nodes and pods use now, as metrics-server tells it. Nothing is kept, and nothing is measured unless
//! somebody asks.
//!
//! Each node measures itself and its own containers; the one that a client asks asks the others. Next: `sampler` for the time
//! between two measurements, `objects` for what is made of them.

mod objects;
mod sampler;

use std::time::Duration;

use axum::extract::{Request, State};
use futures::future::join_all;
use http::StatusCode;
use reconcilers::ports::{Container, Usage};
use schemas::{Kind, Object, ObjectKey, Scope};
use serde_json::{Value, json};
use store::NodeId;

use self::objects::Rate;
use self::sampler::Sampler;
use super::content::{self, Shape};
use super::discovery::Unkept;
use super::resources::{LOCAL_ONLY, get_object, include, peer_list, relayed};
use super::selection::Selection;
use super::state::{ApiState, user_of};
use super::status::{ApiError, ApiResult};
use super::tables;
use super::target::Query;

pub(crate) const GROUP: &str = "metrics.k8s.io";
const API_VERSION: &str = "metrics.k8s.io/v1beta1";
const COLLECTIONS: &str = "/apis/metrics.k8s.io/v1beta1/";

const NODES: Unkept = metered("nodes", "NodeMetrics", Scope::Cluster);
const PODS: Unkept = metered("pods", "PodMetrics", Scope::Namespaced);
pub(crate) const METRICS: &[Unkept] = &[NODES, PODS];

/// How long a node may take: a second lies between two measurements, and one that somebody else waits for may come first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const fn metered(plural: &'static str, kind: &'static str, scope: Scope) -> Unkept {
    Unkept {
        group: GROUP,
        version: "v1beta1",
        plural,
        // As metrics-server has it. That of the kind, which clients take then, is not the one of what is measured.
        singular: "",
        kind,
        scope,
        verbs: &["get", "list"],
    }
}

/// What this node measured last.
#[derive(Default)]
pub struct Metrics {
    machine: Sampler<Usage>,
    containers: Sampler<Vec<(Container, Usage)>>,
}

/// What a path names.
struct Target<'a> {
    resource: Unkept,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
}

impl<'a> Target<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let segments: Vec<&str> = path.strip_prefix(COLLECTIONS)?.split('/').collect();
        let (resource, namespace, name) = match segments.as_slice() {
            ["nodes"] => (NODES, None, None),
            ["nodes", name] => (NODES, None, Some(*name)),
            ["pods"] => (PODS, None, None),
            ["namespaces", namespace, "pods"] => (PODS, Some(*namespace), None),
            ["namespaces", namespace, "pods", name] => (PODS, Some(*namespace), Some(*name)),
            _ => return None,
        };
        Some(Self {
            resource,
            namespace,
            name,
        })
    }

    fn is_of_pods(&self) -> bool {
        self.resource.scope == Scope::Namespaced
    }

    /// The node that measures what is named, if it is there and answers.
    fn measured_by(&self, state: &ApiState, name: &str) -> Option<NodeId> {
        let node = if self.is_of_pods() {
            let pod = ObjectKey::new(Kind::Pod, self.namespace.unwrap_or_default(), name);
            let pod = state.store.get(&pod)?;
            state.node_named(pod.object.str_at("/spec/nodeName"))?
        } else {
            state.node_named(name)?
        };
        (node == state.node || state.live_peers().contains(&node)).then_some(node)
    }

    fn not_found(&self, name: &str) -> ApiError {
        let plural = self.resource.kind.to_lowercase();
        // As metrics-server says it.
        let name = match self.namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        };
        let message = format!("{plural}.{GROUP} \"{name}\" not found");
        let mut error = ApiError::new(StatusCode::NOT_FOUND, "NotFound", message);
        error.details.name = name;
        error.details.group = GROUP.to_owned();
        error.details.kind = plural;
        error
    }
}

/// `GET` of everything below `/apis/metrics.k8s.io/v1beta1/`.
pub(crate) async fn metrics(State(state): State<ApiState>, request: Request) -> ApiResult {
    let (parts, _) = request.into_parts();
    let target = Target::parse(parts.uri.path()).ok_or_else(ApiError::no_resource)?;
    let query = Query::of(&parts.uri)?;
    let accepted = content::accepted(&parts.headers)?;
    if target.name.is_none() && query.flag("watch") {
        return Err(no_watch(&target.resource));
    }
    let (selection, everybody) = match target.name {
        Some(name) => {
            let node = target.measured_by(&state, name);
            (Selection::default().named(name), Vec::from_iter(node))
        }
        None => {
            let mut everybody = state.live_peers();
            everybody.push(state.node.clone());
            (Selection::of_metadata(&query)?, everybody)
        }
    };
    let asked = match parts.headers.contains_key(LOCAL_ONLY) {
        true => vec![state.node.clone()],
        false => everybody,
    };
    let user = user_of(&parts.extensions, &parts.headers);
    let (mut items, missing) = ask(&state, &target, &user, &asked).await;
    if !missing.is_empty() && missing.len() == asked.len() {
        return Err(ApiError::unavailable(missing.join("; ")));
    }
    items.retain(|object| {
        let namespace = target.namespace;
        selection.matches(object) && namespace.is_none_or(|namespace| namespace == object.namespace())
    });
    items.sort_by(|one, other| (one.namespace(), one.name()).cmp(&(other.namespace(), other.name())));
    let include = include(&query)?;
    let value = match (target.name, accepted.shape) {
        (Some(name), _) if items.is_empty() => return Err(target.not_found(name)),
        (_, Shape::Table) => tables::metrics_table(json!({}), &items, include),
        (Some(_), shape) => items.first().map(|item| shaped(item, shape)).unwrap_or_default(),
        (None, shape) => list(&target.resource, &items, shape),
    };
    let mut response = content::answer(StatusCode::OK, accepted.format, &value);
    content::add_warnings(&mut response, &missing);
    Ok(response)
}

/// As metrics-server refuses it.
fn no_watch(resource: &Unkept) -> ApiError {
    let message = format!(
        "watch is not supported on resources of kind \"{}.{GROUP}\"",
        resource.plural
    );
    let mut error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message);
    error.details.group = GROUP.to_owned();
    error.details.kind = resource.plural.to_owned();
    error
}

fn shaped(object: &Object, shape: Shape) -> Value {
    match shape {
        Shape::Metadata => content::metadata_only(object),
        Shape::Whole | Shape::Table => object.clone().into_value(),
    }
}

fn list(resource: &Unkept, items: &[Object], shape: Shape) -> Value {
    let (kind, api_version) = match shape {
        Shape::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1"),
        Shape::Whole | Shape::Table => (format!("{}List", resource.kind), API_VERSION),
    };
    let items: Vec<Value> = items.iter().map(|item| shaped(item, shape)).collect();
    json!({"kind": kind, "apiVersion": api_version, "metadata": {}, "items": items})
}

// ---------------------------------------------------------------- who measures

/// Asks some nodes at once for all that they measure; says in words of which there is no answer.
async fn ask(
    state: &ApiState,
    target: &Target<'_>,
    user: &str,
    nodes: &[NodeId],
) -> (Vec<Object>, Vec<String>) {
    let answers = join_all(nodes.iter().map(|node| async move {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask_one(state, target, user, node)).await;
        answer.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }))
    .await;
    let (mut items, mut missing) = (Vec::new(), Vec::new());
    for (node, answer) in nodes.iter().zip(answers) {
        match answer {
            Ok(found) => items.extend(found),
            Err(reason) => missing.push(format!(
                "metrics of node {} are missing: {reason}",
                state.node_name(node)
            )),
        }
    }
    (items, missing)
}

async fn ask_one(
    state: &ApiState,
    target: &Target<'_>,
    user: &str,
    node: &NodeId,
) -> Result<Vec<Object>, String> {
    if *node == state.node {
        let measured = match target.is_of_pods() {
            true => pods_here(state).await,
            false => node_here(state).await,
        };
        return measured.map_err(|error| error.to_string());
    }
    let path = format!("{COLLECTIONS}{}", target.resource.plural);
    let request = relayed(&path, user, Some("application/json")).map_err(|error| error.message)?;
    peer_list(state, node, request).await
}

async fn node_here(state: &ApiState) -> Result<Vec<Object>, reconcilers::ports::PortError> {
    let window = state
        .metrics
        .machine
        .window(|| state.runtime.machine_usage())
        .await?;
    let key = ObjectKey::cluster(Kind::Node, state.node_name(&state.node));
    let node = get_object(state, &key).ok();
    let rate = Rate::between(&window.earlier, &window.later);
    Ok(node
        .zip(rate)
        .map(|(node, rate)| objects::node(&node, &rate))
        .into_iter()
        .collect())
}

async fn pods_here(state: &ApiState) -> Result<Vec<Object>, reconcilers::ports::PortError> {
    let window = state.metrics.containers.window(|| state.runtime.usage()).await?;
    let pods = objects::of_pods(&window).into_iter();
    Ok(pods
        .filter_map(|((namespace, name, uid), containers)| {
            let view = state.store.get(&ObjectKey::new(Kind::Pod, namespace, name))?;
            // Another one of that name may be wanted by now.
            (view.object.uid() == uid).then(|| objects::pod(&view.object, &containers))
        })
        .collect())
}
