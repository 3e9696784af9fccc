//! The native paths beside manifests and tokens: short forms of reads, endpoints of services, the DNS whitelist.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use reconcilers::ports::DnsWhitelist;
use reconcilers::zone::{WHITELIST_NAME, whitelist};
use schemas::{Kind, Object, ObjectKey};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Precondition, WriteError};

use super::resources::{get_object, list_objects};
use super::state::{ApiState, user_of};
use super::status::{ApiError, ApiResult};
use super::tokens::read_json;

const MANAGER: &str = "api";
/// Each is looked at for every name that a container asks for (by suffix, so the number matters for memory alone).
const MAX_WHITELIST_HOSTS: usize = 10_000;
const MAX_HOST_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;
/// How EndpointSlices name their service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// `GET /api/v1/deployments`.
pub(crate) async fn list_deployments(State(state): State<ApiState>) -> Response {
    Json(list_objects(&state, Kind::Deployment, None)).into_response()
}

/// `GET /api/v1/deployments/{namespace}/{name}`.
pub(crate) async fn get_deployment(
    State(state): State<ApiState>,
    Path((namespace, name)): Path<(String, String)>,
) -> ApiResult {
    let object = get_object(&state, &ObjectKey::new(Kind::Deployment, namespace, name))?;
    Ok(Json(object).into_response())
}

/// `GET /api/v1/pods/{namespace}/{name}`.
pub(crate) async fn get_pod(
    State(state): State<ApiState>,
    Path((namespace, name)): Path<(String, String)>,
) -> ApiResult {
    let object = get_object(&state, &ObjectKey::new(Kind::Pod, namespace, name))?;
    Ok(Json(object).into_response())
}

/// `POST /api/v1/leave`: takes this very node out of the cluster; it stops when it is done.
pub(crate) async fn leave(State(state): State<ApiState>) -> Response {
    // A second request finds the first one still there: the same thing is asked.
    _ = state.leave.try_send(());
    (StatusCode::ACCEPTED, Json(json!({"status": "leaving"}))).into_response()
}

// ---------------------------------------------------------------- endpoints

/// `GET /api/v1/services/{namespace}/{name}/endpoints`: an array, one entry per address and port.
pub(crate) async fn endpoints(
    State(state): State<ApiState>,
    Path((namespace, name)): Path<(String, String)>,
) -> ApiResult {
    let found: Vec<Value> = service_endpoints(&state, &namespace, &name)?
        .into_iter()
        .map(|endpoint| {
            json!({
                "nodeName": endpoint.node_name,
                "address": endpoint.address,
                "port": endpoint.port,
                "healthy": endpoint.healthy,
                "podName": endpoint.pod_name,
            })
        })
        .collect();
    Ok(Json(found).into_response())
}

/// `GET /api/v1/services/{namespace}/{name}/addresses`: the healthy ones as `host:port`.
pub(crate) async fn addresses(
    State(state): State<ApiState>,
    Path((namespace, name)): Path<(String, String)>,
) -> ApiResult {
    let found: Vec<String> = service_endpoints(&state, &namespace, &name)?
        .into_iter()
        .filter(|endpoint| endpoint.healthy)
        .map(|endpoint| match endpoint.address.contains(':') {
            true => format!("[{}]:{}", endpoint.address, endpoint.port),
            false => format!("{}:{}", endpoint.address, endpoint.port),
        })
        .collect();
    Ok(Json(json!({"addresses": found})).into_response())
}

struct ServiceEndpoint {
    node_name: String,
    address: String,
    port: i64,
    healthy: bool,
    pod_name: String,
}

fn service_endpoints(state: &ApiState, namespace: &str, name: &str) -> ApiResult<Vec<ServiceEndpoint>> {
    get_object(state, &ObjectKey::new(Kind::Service, namespace, name))?;
    let slices = state.store.list(Kind::EndpointSlice, Some(namespace)).items;
    let mut own = slices
        .iter()
        .filter(|view| view.object.label(SERVICE_LABEL) == Some(name))
        .peekable();
    if own.peek().is_some() {
        return Ok(own.flat_map(|view| of_slice(&view.object)).collect());
    }
    // A service without a selector has what someone wrote by hand.
    let by_hand = state.store.get(&ObjectKey::new(Kind::Endpoints, namespace, name));
    Ok(by_hand.map_or_else(Vec::new, |view| of_endpoints(&view.object)))
}

fn of_slice(slice: &Object) -> Vec<ServiceEndpoint> {
    let (ports, endpoints) = (list(slice.pointer("/ports")), list(slice.pointer("/endpoints")));
    let mut found = Vec::new();
    for endpoint in endpoints {
        // Absent means ready (discovery.k8s.io/v1, EndpointConditions).
        let healthy = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
        for address in list(endpoint.get("addresses")) {
            found.extend(
                ports
                    .iter()
                    .map(|port| service_endpoint(endpoint, address, port, healthy)),
            );
        }
    }
    found
}

fn of_endpoints(endpoints: &Object) -> Vec<ServiceEndpoint> {
    let mut found = Vec::new();
    for subset in list(endpoints.pointer("/subsets")) {
        let ports = list(subset.get("ports"));
        for (addresses, healthy) in [("addresses", true), ("notReadyAddresses", false)] {
            for entry in list(subset.get(addresses)) {
                let of_port = |port| service_endpoint(entry, &entry["ip"], port, healthy);
                found.extend(ports.iter().map(of_port));
            }
        }
    }
    found
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn service_endpoint(entry: &Value, address: &Value, port: &Value, healthy: bool) -> ServiceEndpoint {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    ServiceEndpoint {
        node_name: text(&entry["nodeName"]),
        address: text(address),
        port: port["port"].as_i64().unwrap_or_default(),
        healthy,
        pod_name: text(&entry["targetRef"]["name"]),
    }
}

// ---------------------------------------------------------------- DNS whitelist

/// `GET /api/v1/dns/whitelist`.
pub(crate) async fn get_whitelist(State(state): State<ApiState>) -> Json<DnsWhitelist> {
    let view = state
        .store
        .get(&ObjectKey::cluster(Kind::DnsWhitelist, WHITELIST_NAME));
    Json(whitelist(view.as_ref().map(|view| &*view.object)))
}

/// The whole whitelist: what is left out would otherwise be switched off or emptied unasked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewWhitelist {
    enabled: bool,
    hosts: Vec<String>,
}

/// `PUT /api/v1/dns/whitelist`.
pub(crate) async fn put_whitelist(State(state): State<ApiState>, request: Request) -> ApiResult {
    let user = user_of(request.extensions(), request.headers());
    let NewWhitelist { enabled, hosts } = read_json(request.into_body()).await?;
    let mut hosts: Vec<String> = hosts
        .iter()
        .map(|host| checked_host(host))
        .collect::<ApiResult<_>>()?;
    hosts.sort_unstable();
    hosts.dedup();
    let wanted = DnsWhitelist { enabled, hosts };
    change_whitelist(&state, &user, |_| wanted.clone()).await
}

#[derive(Deserialize)]
struct NewHost {
    host: String,
}

/// `POST /api/v1/dns/whitelist/hosts`.
pub(crate) async fn add_whitelist_host(State(state): State<ApiState>, request: Request) -> ApiResult {
    let user = user_of(request.extensions(), request.headers());
    let new: NewHost = read_json(request.into_body()).await?;
    let host = checked_host(&new.host)?;
    change_whitelist(&state, &user, |mut whitelist| {
        if !whitelist.hosts.contains(&host) {
            whitelist.hosts.push(host.clone());
        }
        whitelist
    })
    .await
}

/// `DELETE /api/v1/dns/whitelist/hosts/{host}`.
pub(crate) async fn remove_whitelist_host(
    State(state): State<ApiState>,
    Path(host): Path<String>,
    request: Request,
) -> ApiResult {
    let user = user_of(request.extensions(), request.headers());
    let host = checked_host(&host)?;
    let view = state
        .store
        .get(&ObjectKey::cluster(Kind::DnsWhitelist, WHITELIST_NAME));
    if !view.is_some_and(|view| whitelist(Some(&view.object)).hosts.contains(&host)) {
        let message = format!("host \"{host}\" is not in the whitelist");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "NotFound", message));
    }
    change_whitelist(&state, &user, |mut whitelist| {
        whitelist.hosts.retain(|present| *present != host);
        whitelist
    })
    .await
}

/// Changes the whitelist, making it if there is none, and answers with what it is then.
async fn change_whitelist(
    state: &ApiState,
    user: &str,
    change: impl Fn(DnsWhitelist) -> DnsWhitelist + Send + Sync,
) -> ApiResult {
    let key = ObjectKey::cluster(Kind::DnsWhitelist, WHITELIST_NAME);
    let edit = |object: &Object| -> ApiResult<Object> {
        let before = whitelist(Some(object));
        // Hosts that were added on several nodes at once can be more, of which each removal counts.
        let most = MAX_WHITELIST_HOSTS.max(before.hosts.len());
        let changed = change(before);
        if changed.hosts.len() > most {
            return Err(ApiError::bad_request(format!(
                "hosts: must have at most {MAX_WHITELIST_HOSTS} items"
            )));
        }
        let mut object = object.clone();
        object.set(
            &["spec"],
            json!({"enabled": changed.enabled, "hosts": changed.hosts}),
        );
        Ok(object)
    };
    let author = state.author(MANAGER, user);
    if state.store.get(&key).is_none() {
        match state
            .store
            .create(edit(&Object::new(&key))?, author.clone())
            .await
        {
            Ok(view) => return Ok(Json(whitelist(Some(&view.object))).into_response()),
            // Another request was faster.
            Err(WriteError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let view = state
        .store
        .update(&key, &Precondition::default(), author, edit)
        .await?;
    Ok(Json(whitelist(Some(&view.object))).into_response())
}

/// Checks a DNS name (RFC 1123) and writes it as it is compared: lower case, without the last dot.
fn checked_host(host: &str) -> ApiResult<String> {
    let name = host.trim().trim_end_matches('.').to_ascii_lowercase();
    let label_fits = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > MAX_HOST_BYTES || !name.split('.').all(label_fits) {
        return Err(ApiError::bad_request(format!(
            "host: Invalid value: \"{host}\": must be a DNS name (letters, digits and hyphens between dots)"
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitelist_hosts_are_names() {
        assert_eq!(checked_host("GitHub.com.").unwrap(), "github.com");
        for bad in ["", "a..b", "-a.com", "http://a.com", "a b"] {
            assert!(checked_host(bad).is_err(), "{bad}");
        }
    }
}
