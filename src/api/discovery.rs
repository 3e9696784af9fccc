//! What there is: versions, groups and resources, from the kind table and the tables of what is never kept, in the legacy
//! and the aggregated form. Each group is served in one version.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use schemas::{Kind, KindRow, Scope, Subresource};
use serde_json::{Value, json};

use super::metrics::METRICS;
use super::reviews::REVIEWS;
use super::state::ApiState;
use super::status::{ApiError, ApiResult};
use super::target::word;

/// The version of Kubernetes whose API is served; `gitVersion` carries our build behind it.
const KUBERNETES_VERSION: &str = "v1.33.0";
const KUBERNETES_MINOR: &str = "33";

pub(crate) const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Those of Namespaces, of which Kubernetes deletes one at a time.
const NAMESPACE_VERBS: [&str; 7] = ["create", "delete", "get", "list", "patch", "update", "watch"];
const SUBRESOURCE_VERBS: [&str; 3] = ["get", "patch", "update"];

/// A resource that is answered and never kept: it has no row in the kind table.
pub(crate) struct Unkept {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    /// Empty: clients make it of the kind.
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) scope: Scope,
    pub(crate) verbs: &'static [&'static str],
}

/// All of them. What others have kinds of as well comes last, since clients take the first of a name.
const UNKEPT: [&[Unkept]; 2] = [REVIEWS, METRICS];

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `GET /version`.
pub(crate) async fn version(State(state): State<ApiState>) -> Json<Value> {
    Json(json!({
        "major": "1",
        "minor": KUBERNETES_MINOR,
        "gitVersion": format!("{KUBERNETES_VERSION}+podman-swarm.{}", state.build.version),
        "gitCommit": state.build.git_commit,
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_architecture()),
    }))
}

/// Kubernetes names processors as Go does.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `GET /api`.
pub(crate) async fn api_versions(headers: HeaderMap) -> Response {
    if wants_aggregated(&headers) {
        return aggregated(&[""]);
    }
    Json(json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [],
    }))
    .into_response()
}

/// `GET /apis`.
pub(crate) async fn groups(headers: HeaderMap) -> Response {
    if wants_aggregated(&headers) {
        return aggregated(&named_groups());
    }
    let groups: Vec<Value> = named_groups().into_iter().map(group_value).collect();
    Json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})).into_response()
}

/// `GET /apis/{group}`.
pub(crate) async fn group(Path(group): Path<String>) -> ApiResult {
    if !named_groups().contains(&group.as_str()) {
        return Err(ApiError::no_resource());
    }
    let mut value = group_value(&group);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Ok(Json(value).into_response())
}

/// `GET /apis/{group}/{version}`.
pub(crate) async fn group_resources(Path((group, version)): Path<(String, String)>) -> ApiResult {
    resource_list(&group, &version)
}

/// `GET /api/v1`.
pub(crate) async fn core_resources() -> ApiResult {
    resource_list("", "v1")
}

/// The rows of a group that are shown.
pub(crate) fn served(group: &str) -> impl Iterator<Item = &'static KindRow> {
    let group = group.to_owned();
    KindRow::served().filter(move |row| row.group == group)
}

/// The resources of a group that are never kept.
pub(crate) fn unkept(group: &str) -> impl Iterator<Item = &'static Unkept> {
    let all = UNKEPT.into_iter().flatten();
    all.filter(move |resource| resource.group == group)
}

/// The version that a group is served in.
pub(crate) fn version_of(group: &str) -> &'static str {
    let of_kinds = served(group).map(|row| row.version);
    let mut versions = of_kinds.chain(unkept(group).map(|resource| resource.version));
    versions.next().unwrap_or("v1")
}

/// The groups that are shown, without the core group, in the order of the tables.
pub(crate) fn named_groups() -> Vec<&'static str> {
    let mut groups = Vec::new();
    let rows = KindRow::served().filter(|row| !row.group.is_empty());
    let unkept = UNKEPT.into_iter().flatten();
    for group in rows
        .map(|row| row.group)
        .chain(unkept.map(|resource| resource.group))
    {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

fn group_value(group: &str) -> Value {
    let version = version_of(group);
    let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

fn resource_list(group: &str, version: &str) -> ApiResult {
    if version != version_of(group) {
        return Err(ApiError::no_resource());
    }
    let mut resources = Vec::new();
    for row in served(group) {
        let namespaced = row.scope == Scope::Namespaced;
        let mut resource = json!({
            "name": row.plural,
            "singularName": row.singular,
            "namespaced": namespaced,
            "kind": row.name,
            "verbs": verbs(row),
        });
        if !row.short_names.is_empty() {
            resource["shortNames"] = row.short_names.into();
        }
        if row.in_all {
            resource["categories"] = json!(["all"]);
        }
        resources.push(resource);
        for part in row.subresources {
            let mut resource = json!({
                "name": format!("{}/{}", row.plural, word(*part)),
                "singularName": "",
                "namespaced": namespaced,
                "kind": row.name,
                "verbs": subresource_verbs(*part),
            });
            if let Some((group, kind)) = own_kind(*part) {
                if group != row.group {
                    resource["group"] = group.into();
                    resource["version"] = "v1".into();
                }
                resource["kind"] = kind.into();
            }
            resources.push(resource);
        }
    }
    for resource in unkept(group) {
        resources.push(json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.scope == Scope::Namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs,
        }));
    }
    if resources.is_empty() {
        return Err(ApiError::no_resource());
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Ok(Json(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }))
    .into_response())
}

/// What can be done with a kind.
pub(crate) fn verbs(row: &KindRow) -> &'static [&'static str] {
    if row.kind == Kind::Namespace {
        &NAMESPACE_VERBS
    } else {
        &VERBS
    }
}

pub(crate) fn subresource_verbs(part: Subresource) -> &'static [&'static str] {
    match part {
        Subresource::Status | Subresource::Scale => &SUBRESOURCE_VERBS,
        Subresource::Log => &["get"],
        Subresource::Eviction | Subresource::Binding => &["create"],
        Subresource::Exec | Subresource::Attach | Subresource::PortForward => &["create", "get"],
    }
}

/// Group and kind of what a subresource takes, where that is not the object.
pub(crate) fn own_kind(part: Subresource) -> Option<(&'static str, &'static str)> {
    match part {
        Subresource::Scale => Some(("autoscaling", "Scale")),
        Subresource::Eviction => Some(("policy", "Eviction")),
        Subresource::Binding => Some(("", "Binding")),
        Subresource::Exec => Some(("", "PodExecOptions")),
        Subresource::Attach => Some(("", "PodAttachOptions")),
        Subresource::PortForward => Some(("", "PodPortForwardOptions")),
        Subresource::Status | Subresource::Log => None,
    }
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.unwrap_or_default().split(',').any(|clause| {
        let mut parts: Vec<&str> = clause.split(';').map(str::trim).collect();
        parts.sort_unstable();
        parts.starts_with(&[
            "application/json",
            "as=APIGroupDiscoveryList",
            "g=apidiscovery.k8s.io",
            "v=v2",
        ])
    })
}

/// The aggregated form: everything of some groups in one answer.
fn aggregated(groups: &[&str]) -> Response {
    let items: Vec<Value> = groups
        .iter()
        .map(|group| {
            let resources: Vec<Value> = served(group)
                .map(aggregated_resource)
                .chain(unkept(group).map(aggregated_unkept))
                .collect();
            let metadata = if group.is_empty() {
                json!({})
            } else {
                json!({"name": group})
            };
            json!({
                "metadata": metadata,
                "versions": [{"version": version_of(group), "resources": resources, "freshness": "Current"}],
            })
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    });
    let mut response = Json(list).into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn aggregated_unkept(resource: &'static Unkept) -> Value {
    json!({
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": scope_name(resource.scope),
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    })
}

fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Namespaced => "Namespaced",
        Scope::Cluster => "Cluster",
    }
}

fn aggregated_resource(row: &'static KindRow) -> Value {
    let kind = |group: &str, kind: &str| json!({"group": group, "version": "v1", "kind": kind});
    let mut resource = json!({
        "resource": row.plural,
        "responseKind": kind(row.group, row.name),
        "scope": scope_name(row.scope),
        "singularResource": row.singular,
        "verbs": verbs(row),
    });
    if !row.short_names.is_empty() {
        resource["shortNames"] = row.short_names.into();
    }
    if row.in_all {
        resource["categories"] = json!(["all"]);
    }
    let parts: Vec<Value> = row
        .subresources
        .iter()
        .map(|part| {
            let (group, name) = own_kind(*part).unwrap_or((row.group, row.name));
            let response_kind = kind(group, name);
            json!({"subresource": word(*part), "responseKind": response_kind, "verbs": subresource_verbs(*part)})
        })
        .collect();
    if !parts.is_empty() {
        resource["subresources"] = parts.into();
    }
    resource
}
