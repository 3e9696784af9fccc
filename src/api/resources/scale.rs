//! `/scale` of workloads: replicas alone, as `autoscaling/v1` shows them.

use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use schemas::{Object, ObjectKey};
use serde_json::{Value, json};

use super::apply::{APPLY_TYPE, applied, check_manager_is_named, demanded};
use super::decode::{Validation, parse_yaml};
use super::write::{change_object, check_meant, check_place, named_version, patched};
use super::{Call, foreign, get_object, plain_answer, shown};
use crate::api::content::{
    self, MAX_OBJECT_BYTES, PROTOBUF, content_type, parse_value, read_body, unsupported_media,
};
use crate::api::status::{ApiError, ApiResult, Cause};
use crate::api::tables::pods_of;

const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    APPLY_TYPE,
];
pub(super) const API_VERSION: &str = "autoscaling/v1";

/// Answers `GET` of a scale.
pub(super) fn get(call: &Call<'_>) -> ApiResult {
    let object = get_object(call.state, &call.key()?)?;
    Ok(plain_answer(call, StatusCode::OK, &scale_of(&object)))
}

/// Answers `PUT` of a scale.
pub(super) async fn update(call: &Call<'_>, body: Body) -> ApiResult {
    if !matches!(content_type(&call.headers), "" | "application/json" | PROTOBUF) {
        return Err(unsupported_media(&["application/json", PROTOBUF]));
    }
    let bytes = read_body(body, MAX_OBJECT_BYTES).await?;
    let scale = parse_value(&call.headers, &bytes)?;
    content::expect_type(&scale, API_VERSION, "Scale")?;
    check_place(call, &Object::from_value(scale.clone()).unwrap_or_default())?;
    if let Some(answer) = foreign::write(call, &call.key()?, named_version(&scale)?, &bytes).await? {
        return Ok(answer);
    }
    write(call, &|_| Ok(scale.clone())).await
}

/// Answers `PATCH` of a scale.
pub(super) async fn patch(call: &Call<'_>, body: Body) -> ApiResult {
    let media = content_type(&call.headers).to_owned();
    if !PATCH_TYPES.contains(&media.as_str()) {
        return Err(unsupported_media(&PATCH_TYPES));
    }
    let bytes = read_body(body, MAX_OBJECT_BYTES).await?;
    if media == APPLY_TYPE {
        return apply(call, &bytes).await;
    }
    let patch = parse_value(&call.headers, &bytes)?;
    if let Some(answer) = foreign::write(call, &call.key()?, named_version(&patch)?, &bytes).await? {
        return Ok(answer);
    }
    // A Scale has no lists, so that a strategic patch of it is a merge patch.
    let media = if media == PATCH_TYPES[0] {
        PATCH_TYPES[0]
    } else {
        PATCH_TYPES[1]
    };
    write(call, &|object| {
        let scale = Object::from_value(scale_of(object)).unwrap_or_default();
        Ok(patched(media, &scale, &patch)?.into_value())
    })
    .await
}

/// Answers an apply of a scale: of the object's fields it names the replicas, or none.
async fn apply(call: &Call<'_>, bytes: &Bytes) -> ApiResult {
    check_manager_is_named(call)?;
    let key = call.key()?;
    let (scale, _) = parse_yaml(bytes, None)?;
    let scale = scale.into_value();
    content::expect_type(&scale, API_VERSION, "Scale")?;
    let meant = Object::from_value(scale.clone()).unwrap_or_default();
    check_place(call, &meant)?;
    let precondition = demanded(&meant)?;
    if let Some(answer) = foreign::write(call, &key, precondition.resource_version, bytes).await? {
        return Ok(answer);
    }
    let mut named = Object::new(&key);
    if !scale["spec"]["replicas"].is_null() {
        named.set(&["spec", "replicas"], replicas(&key, &scale)?);
    }
    let (applied, _) = applied(call, &key, named, precondition).await?;
    Ok(plain_answer(
        call,
        StatusCode::OK,
        &scale_of(&shown(&applied.view)),
    ))
}

/// Sets the replicas of the object to those of the scale that `edit` makes of it.
async fn write(call: &Call<'_>, edit: &(dyn Fn(&Object) -> ApiResult<Value> + Send + Sync)) -> ApiResult {
    let key = call.key()?;
    // Compared where nobody else writes, so that of two requests with one version one succeeds.
    let change = |object: &Object| {
        let scale = edit(object)?;
        let meant = Object::from_value(scale.clone()).unwrap_or_default();
        check_meant(&key, object, object, &meant)?;
        let mut object = object.clone();
        object.set(&["spec", "replicas"], replicas(&key, &scale)?);
        Ok(object)
    };
    let (object, _) = change_object(call, &key, Validation::Ignore, &change).await?;
    Ok(plain_answer(call, StatusCode::OK, &scale_of(&object)))
}

fn replicas(key: &ObjectKey, scale: &Value) -> ApiResult<i64> {
    let value = &scale["spec"]["replicas"];
    match value {
        Value::Null => Ok(0),
        _ => value
            .as_i64()
            .filter(|count| (0..=i64::from(i32::MAX)).contains(count))
            .ok_or_else(|| {
                let cause = Cause {
                    reason: "FieldValueInvalid".into(),
                    message: format!("Invalid value: {value}: must be greater than or equal to 0"),
                    field: "spec.replicas".into(),
                };
                ApiError::invalid(key.kind, &key.name, vec![cause])
            }),
    }
}

fn scale_of(object: &Object) -> Value {
    json!({
        "kind": "Scale",
        "apiVersion": API_VERSION,
        "metadata": {
            "name": object.name(),
            "namespace": object.namespace(),
            "uid": object.uid(),
            "resourceVersion": object.str_at("/metadata/resourceVersion"),
            "creationTimestamp": object.str_at("/metadata/creationTimestamp"),
        },
        "spec": {"replicas": object.i64_at("/spec/replicas").unwrap_or(1)},
        "status": {
            "replicas": object.i64_at("/status/replicas").unwrap_or_default(),
            "selector": pods_of(object),
        },
    })
}
