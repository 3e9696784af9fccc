//! [`ApiError`]: every refusal of the API, answered as a Kubernetes `Status`.
//!
//! Messages, reasons and codes are those of Kubernetes, since clients act on them (`kubectl`, informers).

use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use schemas::meta::split_manager;
use schemas::{Kind, KindRow, ObjectKey};
use serde_json::{Map, Value, json};
use store::{CommitError, OwnedField, WriteError};

/// One entry of `details.causes`: what is wrong with which field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldManagerConflict`, …
    pub reason: String,
    pub message: String,
    /// A field path (`spec.replicas`).
    pub field: String,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: StatusCode,
    /// `NotFound`, `Invalid`, …: empty where Kubernetes has none.
    pub reason: &'static str,
    pub message: String,
    pub retry_after_seconds: Option<u32>,
    /// Boxed to keep results small.
    pub details: Box<Details>,
}

/// What a refusal is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The plural, or the kind for Invalid.
    pub kind: String,
    pub causes: Vec<Cause>,
    /// In the metadata: with what a list that cannot be finished as it began may go on. Empty: nothing.
    pub list_continue: String,
}

/// What handlers return.
pub type ApiResult<T = Response> = Result<T, ApiError>;

impl ApiError {
    /// Makes an error without details.
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            retry_after_seconds: None,
            details: Box::default(),
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// The path names nothing that this server knows.
    pub fn no_resource() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// Known to Kubernetes, not served here; the message says what and why.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message);
        error.retry_after_seconds = Some(1);
        error
    }

    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit_bytes}"),
        )
    }

    /// A watch or a list from a version that is no longer kept, or another node's.
    pub fn expired() -> Self {
        Self::new(
            StatusCode::GONE,
            "Expired",
            "too old resource version or one of another node: list again",
        )
    }

    pub fn not_found(key: &ObjectKey) -> Self {
        let message = format!("{} \"{}\" not found", key.kind.row().resource(), key.name);
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(key)
    }

    pub fn exists(key: &ObjectKey) -> Self {
        let message = format!("{} \"{}\" already exists", key.kind.row().resource(), key.name);
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(key)
    }

    /// The object is not at the version (or of the identity) that the request was made for.
    pub fn conflict(key: &ObjectKey, why: &str) -> Self {
        let resource = key.kind.row().resource();
        let message = format!(
            "Operation cannot be fulfilled on {resource} \"{}\": {why}",
            key.name
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(key)
    }

    /// [`ApiError::conflict`] for a stale `resourceVersion`.
    pub fn modified(key: &ObjectKey) -> Self {
        Self::conflict(
            key,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// [`ApiError::conflict`] for an object of this name that is not the one that was meant.
    pub fn another(key: &ObjectKey, meant_uid: &str, uid: &str) -> Self {
        Self::conflict(
            key,
            &format!("Precondition failed: UID in precondition: {meant_uid}, UID in object meta: {uid}"),
        )
    }

    /// Server-side apply met fields of other managers, in an object that was asked for in this version.
    pub fn owned(key: &ObjectKey, fields: &[OwnedField], api_version: &str) -> Self {
        owned(key, fields, api_version)
    }

    pub fn forbidden(key: &ObjectKey, why: &str) -> Self {
        let resource = key.kind.row().resource();
        let message = format!("{resource} \"{}\" is forbidden: {why}", key.name);
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(key)
    }

    /// 422 with every field that is wrong.
    pub fn invalid(kind: Kind, name: &str, causes: Vec<Cause>) -> Self {
        let row = kind.row();
        let qualified = if row.group.is_empty() {
            row.name.to_owned()
        } else {
            format!("{}.{}", row.name, row.group)
        };
        let mut error = Self::unprocessable(&qualified, name, causes);
        error.details.group = row.group.to_owned();
        error.details.kind = row.name.to_owned();
        error
    }

    /// [`ApiError::invalid`] for what is no object: `qualified` is what it is called in the message.
    pub fn unprocessable(qualified: &str, name: &str, causes: Vec<Cause>) -> Self {
        let mut lines: Vec<String> = causes
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        let list = match lines.len() {
            1 => lines.remove(0),
            _ => format!("[{}]", lines.join(", ")),
        };
        let mut error = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{qualified} \"{name}\" is invalid: {list}"),
        );
        error.details.name = name.to_owned();
        error.details.causes = causes;
        error
    }

    /// Puts the object into `details`.
    pub fn about(mut self, key: &ObjectKey) -> Self {
        let row = key.kind.row();
        self.details.name = key.name.clone();
        self.details.group = row.group.to_owned();
        self.details.kind = row.plural.to_owned();
        self
    }

    /// Names the object as the group does that it was asked for in.
    pub(super) fn of_row(mut self, row: &KindRow) -> Self {
        let named = [row.name, row.plural].contains(&self.details.kind.as_str());
        if named && self.details.group != row.group {
            let of_own = format!("{} \"", self.details.kind);
            let of_group = format!("{}.{} \"", self.details.kind, row.group);
            self.message = self.message.replacen(&of_own, &of_group, 1);
            self.details.group = row.group.to_owned();
        }
        self
    }

    /// Adds a cause.
    pub fn because(mut self, reason: &str, message: impl Into<String>, field: &str) -> Self {
        self.details.causes.push(Cause {
            reason: reason.to_owned(),
            message: message.into(),
            field: field.to_owned(),
        });
        self
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        });
        if let Value::Object(map) = &mut status {
            if !self.reason.is_empty() {
                map.insert("reason".into(), self.reason.into());
            }
            let details = self.details();
            if !details.is_empty() {
                map.insert("details".into(), Value::Object(details));
            }
            map.insert("code".into(), self.code.as_u16().into());
        }
        if !self.details.list_continue.is_empty() {
            status["metadata"]["continue"] = self.details.list_continue.as_str().into();
        }
        status
    }

    fn details(&self) -> Map<String, Value> {
        let mut details = Map::new();
        for (field, value) in [
            ("name", &self.details.name),
            ("group", &self.details.group),
            ("kind", &self.details.kind),
        ] {
            if !value.is_empty() {
                details.insert(field.into(), value.clone().into());
            }
        }
        if !self.details.causes.is_empty() {
            let causes: Vec<Value> = self
                .details
                .causes
                .iter()
                .map(|cause| {
                    let mut shown = json!({"reason": cause.reason, "message": cause.message});
                    if !cause.field.is_empty() {
                        shown["field"] = cause.field.as_str().into();
                    }
                    shown
                })
                .collect();
            details.insert("causes".into(), causes.into());
        }
        if let Some(seconds) = self.retry_after_seconds {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        details
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (
            self.code,
            [(header::CONTENT_TYPE, "application/json")],
            self.to_value().to_string(),
        )
            .into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Exists(key) => Self::exists(&key),
            WriteError::NotFound(key) => Self::not_found(&key),
            WriteError::Conflict { key, .. } => Self::modified(&key),
            // kubectl tries again for a while: a peer may bring it, or what is lacking.
            WriteError::Unreadable(ref key) | WriteError::CatchingUp(ref key) => {
                Self::unavailable(error.to_string()).about(key)
            }
            WriteError::Owned { key, fields } => Self::owned(&key, &fields, &key.kind.row().api_version()),
            WriteError::Invalid { key, reason } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid",
                format!("{key}: {reason}"),
            ),
            WriteError::Commit(cause) => {
                tracing::error!(error = %cause, "a write was not stored");
                let message = format!("the write was not stored: {cause}");
                match cause {
                    // RFC 4918, 11.5. Without a time to try again after: it takes a person, and kubectl would wait.
                    CommitError::Full(_) => {
                        Self::new(StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage", message)
                    }
                    CommitError::Failed(_) => Self::unavailable(message),
                }
            }
        }
    }
}

/// Names each field with its manager, in Kubernetes' words.
fn owned(key: &ObjectKey, fields: &[OwnedField], api_version: &str) -> ApiError {
    let manager = |field: &OwnedField| {
        let mut text = match split_manager(&field.manager) {
            (manager, Some(subresource)) => format!("\"{manager}\" with subresource \"{subresource}\""),
            (manager, None) => format!("\"{manager}\""),
        };
        if field.by_update {
            text += &format!(" using {api_version}");
        }
        text
    };
    let list = match fields {
        [field] => format!("1 conflict: conflict with {}: {}", manager(field), field.path),
        fields => {
            let mut by_manager: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for field in fields {
                let paths = by_manager.entry(manager(field)).or_default();
                paths.push(format!("\n- {}", field.path));
            }
            let managers: Vec<String> = by_manager
                .into_iter()
                .map(|(manager, paths)| format!("conflicts with {manager}:{}", paths.concat()))
                .collect();
            format!("{} conflicts: {}", fields.len(), managers.join("\n"))
        }
    };
    let mut error = ApiError::new(
        StatusCode::CONFLICT,
        "Conflict",
        format!("Apply failed with {list}"),
    )
    .about(key);
    error.details.causes = fields
        .iter()
        .map(|field| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {}", manager(field)),
            field: field.path.clone(),
        })
        .collect();
    error
}

/// The `Status` of something that went well (a deletion).
pub(super) fn success(row: &KindRow, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": row.plural, "uid": uid});
    if let (Value::Object(map), false) = (&mut details, row.group.is_empty()) {
        map.insert("group".into(), row.group.into());
    }
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_read_as_those_of_kubernetes() {
        let key = ObjectKey::new(Kind::Deployment, "default", "web");
        assert_eq!(
            ApiError::not_found(&key).to_value(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "deployments.apps \"web\" not found", "reason": "NotFound",
                "details": {"name": "web", "group": "apps", "kind": "deployments"}, "code": 404,
            })
        );
    }

    #[test]
    fn invalid_lists_every_field() {
        let cause = |field: &str| Cause {
            reason: "FieldValueRequired".into(),
            message: "Required value".into(),
            field: field.into(),
        };
        let one = ApiError::invalid(Kind::Pod, "web", vec![cause("spec.containers")]);
        assert_eq!(
            one.message,
            "Pod \"web\" is invalid: spec.containers: Required value"
        );
        let two = ApiError::invalid(Kind::Deployment, "web", vec![cause("a"), cause("b")]);
        assert_eq!(
            two.message,
            "Deployment.apps \"web\" is invalid: [a: Required value, b: Required value]"
        );
    }

    #[test]
    fn apply_conflicts_name_each_manager() {
        let key = ObjectKey::new(Kind::Deployment, "default", "web");
        let field = |path: &str, manager: &str, by_update| OwnedField {
            path: path.to_owned(),
            manager: manager.to_owned(),
            by_update,
        };
        let fields = vec![field(".spec.replicas", "kubectl-edit", true)];
        let error = ApiError::from(WriteError::Owned {
            key: key.clone(),
            fields,
        });
        assert_eq!(error.code, StatusCode::CONFLICT);
        assert_eq!(
            error.message,
            "Apply failed with 1 conflict: conflict with \"kubectl-edit\" using apps/v1: .spec.replicas"
        );
        let fields = vec![
            field(".a", "two", false),
            field(".b", "one", false),
            field(".c", "two", false),
        ];
        let error = ApiError::from(WriteError::Owned { key, fields });
        assert_eq!(
            error.message,
            "Apply failed with 3 conflicts: conflicts with \"one\":\n- .b\nconflicts with \"two\":\n- .a\n- .c"
        );
        assert_eq!(error.details.causes[0].reason, "FieldManagerConflict");
    }
}
