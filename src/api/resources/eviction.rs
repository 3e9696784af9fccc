//! `/eviction` and `/binding` of pods: a deletion that asks the budgets first, and a placement by hand.

use axum::body::Body;
use http::StatusCode;
use reconcilers::budget::{is_ready, selects};
use reconcilers::controller::allowance;
use schemas::{Kind, Object, ObjectKey};
use serde_json::{Value, json};
use store::Precondition;
use tokio::sync::Mutex;

use super::delete::{completed, delete_object, parsed};
use super::write::named_version;
use super::{Call, foreign, plain_answer};
use crate::api::content::{self, MAX_OBJECT_BYTES, parse_value, read_body};
use crate::api::state::ApiState;
use crate::api::status::{ApiError, ApiResult};

/// One eviction at a time, lest two count the same healthy pods.
static EVICTING: Mutex<()> = Mutex::const_new(());

/// Answers `POST` of an eviction: a deletion, with the options in it, if the pod's budget allows one.
pub(super) async fn evict(call: &Call<'_>, body: Body) -> ApiResult {
    let key = call.key()?;
    let body = read_body(body, MAX_OBJECT_BYTES).await?;
    let eviction = parse_value(&call.headers, &body)?;
    content::expect_type(&eviction, "policy/v1", "Eviction")?;
    expect_name(&eviction, &key, "Eviction")?;
    let inner = eviction.get("deleteOptions").filter(|inner| !inner.is_null());
    let options = inner.cloned().map(parsed).transpose()?.unwrap_or_default();
    let options = completed(call, options)?;
    if let Some(answer) = foreign::write(call, &key, options.meant(), &body).await? {
        return Ok(answer);
    }
    let _alone = EVICTING.lock().await;
    let pod = call
        .state
        .store
        .get(&key)
        .ok_or_else(|| ApiError::not_found(&key))?;
    check_budget(call.state, &pod.object)?;
    delete_object(call.state, &key, &options, call.author()?).await?;
    Ok(created(call))
}

/// Refuses if the pod's budget has nothing left. Source: Kubernetes, `registry/core/pod/storage/eviction.go`.
fn check_budget(state: &ApiState, pod: &Object) -> ApiResult<()> {
    let is_no_loss = matches!(pod.str_at("/status/phase"), "Pending" | "Succeeded" | "Failed");
    if is_no_loss || pod.is_terminating() {
        return Ok(());
    }
    let budgets = state.store.list(Kind::PodDisruptionBudget, Some(pod.namespace()));
    let mut budgets = budgets.items.iter().filter(|budget| selects(&budget.object, pod));
    let Some(budget) = budgets.next() else {
        return Ok(());
    };
    if budgets.next().is_some() {
        return Err(ApiError::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    let allowance = allowance(&state.store, &budget.object);
    let is_always = budget.object.str_at("/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow";
    let is_met = allowance.desired > 0 && allowance.healthy >= allowance.desired;
    let may_go = !is_ready(pod) && (is_always || is_met);
    if may_go || allowance.allowed() > 0 {
        return Ok(());
    }
    let error = ApiError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "TooManyRequests",
        "Cannot evict pod as it would violate the pod's disruption budget.",
    );
    let message = format!(
        "The disruption budget {} needs {} healthy pods and has {} currently",
        budget.key.name, allowance.desired, allowance.healthy
    );
    Err(error.because("DisruptionBudget", message, ""))
}

/// Answers `POST` of a binding: puts a pod that is on no node on one.
pub(super) async fn bind(call: &Call<'_>, body: Body) -> ApiResult {
    let key = call.key()?;
    let body = read_body(body, MAX_OBJECT_BYTES).await?;
    let binding = parse_value(&call.headers, &body)?;
    content::expect_type(&binding, "v1", "Binding")?;
    expect_name(&binding, &key, "Binding")?;
    let target = |field: &str| binding["target"][field].as_str().unwrap_or_default();
    if !matches!(target("kind"), "" | "Node") || target("name").is_empty() {
        return Err(ApiError::bad_request(
            "target: must name a Node: {\"kind\": \"Node\", \"name\": \"...\"}",
        ));
    }
    let place = |pod: &Object| {
        let node = pod.str_at("/spec/nodeName");
        if !node.is_empty() {
            let why = format!("pod {} is already assigned to node \"{node}\"", key.name);
            return Err(ApiError::conflict(&key, &why));
        }
        if pod.is_terminating() {
            let why = format!("pod {} is being deleted, cannot be assigned to a host", key.name);
            return Err(ApiError::conflict(&key, &why));
        }
        let mut pod = pod.clone();
        pod.set(&["spec", "nodeName"], target("name"));
        Ok(pod)
    };
    let meant = named_version(&binding)?;
    if let Some(answer) = foreign::write(call, &key, meant, &body).await? {
        return Ok(answer);
    }
    let uid = binding.pointer("/metadata/uid").and_then(Value::as_str);
    let precondition = Precondition {
        uid: uid.map(str::to_owned),
        resource_version: meant,
    };
    let store = &call.state.store;
    if call.query.dry_run()? {
        let pod = store.get(&key).ok_or_else(|| ApiError::not_found(&key))?;
        place(&pod.object)?;
    } else {
        store.update(&key, &precondition, call.author()?, place).await?;
    }
    Ok(created(call))
}

fn expect_name(object: &Value, key: &ObjectKey, kind: &str) -> ApiResult<()> {
    let named = object.pointer("/metadata/name").and_then(Value::as_str);
    if named.is_none_or(|name| name == key.name) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "name in the URL ({}) does not match the name in the {kind}",
        key.name
    )))
}

fn created(call: &Call<'_>) -> axum::response::Response {
    plain_answer(
        call,
        StatusCode::CREATED,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    )
}
