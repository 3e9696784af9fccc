//! Server-side apply of an object or of a part of it: read, compared with who owns what, stored.
//!
//! Which fields come to be whose is decided in the store (`store/src/apply.rs`).

use bytes::Bytes;
use http::StatusCode;
use schemas::meta::LAST_APPLIED;
use schemas::{Kind, Object, ObjectKey, Subresource, validate};
use store::{Applied, Author, Outcome, OwnedField, Precondition, Via, View, WriteError};

use super::decode::{self, Validation, parse_yaml};
use super::edit::{Part, cleaned, tidied};
use super::write::{
    addressed, check_namespace, check_precondition, check_status, of_object, part_of, precondition, refused,
};
use super::{Call, answered, foreign, object_answer, scale, shown};
use crate::api::content;
use crate::api::status::{ApiError, ApiResult};
use crate::api::target::Behind;

pub(super) const APPLY_TYPE: &str = "application/apply-patch+yaml";

/// Answers an apply of an object or of its status.
pub(super) async fn apply(
    call: &Call<'_>,
    key: &ObjectKey,
    bytes: &Bytes,
    validation: Validation,
) -> ApiResult {
    check_manager_is_named(call)?;
    let part = part_of(call);
    if part == Part::Status && key.kind.row().derived {
        return Err(ApiError::not_implemented(
            "server-side apply of a computed status is not served",
        ));
    }
    if key.kind == Kind::Event {
        return Err(ApiError::method_not_allowed());
    }
    let (object, duplicates) = parse_yaml(bytes, None)?;
    let object = addressed(call, object, Some(key))?;
    let precondition = demanded(&object)?;
    if let Some(answer) = foreign::write(call, key, precondition.resource_version, bytes).await? {
        return Ok(answer);
    }
    let (object, read) = decode::typed((object, duplicates), validation)?;
    let object = match part {
        Part::Main => cleaned(key.kind, tidied(object)),
        Part::Status => status_alone(key, tidied(object)),
    };
    let (applied, warnings) = applied(call, key, object, precondition).await?;
    let code = match applied.outcome {
        Outcome::Created => StatusCode::CREATED,
        Outcome::Configured | Outcome::Unchanged => StatusCode::OK,
    };
    let mut response = object_answer(call, code, answered(&applied.view))?;
    content::add_warnings(&mut response, &[read, warnings].concat());
    Ok(response)
}

/// Applies what an object names of itself, or of what is behind the call's subresource: of that nothing is made.
/// Returns what became of it, and warnings.
pub(super) async fn applied(
    call: &Call<'_>,
    key: &ObjectKey,
    mut object: Object,
    precondition: Precondition,
) -> ApiResult<(Applied, Vec<String>)> {
    let is_behind = call.target.behind.is_some();
    // The store compares them again, where nobody else writes.
    if let Some(uid) = &precondition.uid {
        object.set(&["metadata", "uid"], uid.clone());
    }
    if let Some(version) = precondition.resource_version {
        object.set(&["metadata", "resourceVersion"], version.to_string());
    }
    let before = call.state.store.get(key);
    match &before {
        Some(view) => {
            check_precondition(key, view, &precondition)?;
            if is_behind {
                // Nothing is made where the object goes meanwhile.
                object.set(&["metadata", "uid"], view.object.uid());
            }
        }
        None if precondition != Precondition::default() || is_behind => {
            return Err(ApiError::not_found(key));
        }
        None => check_namespace(&call.state.store, key)?,
    }
    let mut force = call.query.flag("force");
    let author = Author {
        via: Via::Apply,
        ..call.author()?
    };
    let mut planned = call.state.store.apply_dry(object.clone(), &author, force);
    if planned
        .as_ref()
        .is_err_and(|error| is_own(error, before.as_ref(), &author))
    {
        force = true;
        planned = call.state.store.apply_dry(object.clone(), &author, force);
    }
    let planned = planned.map_err(|error| refusal(call, error))?;
    let warnings = match part_of(call) {
        Part::Main => of_object(key, check_applied(key, before.as_ref(), &object, &planned.view)?),
        Part::Status => {
            check_status(key, &planned.view.object)?;
            Vec::new()
        }
    };
    if call.query.dry_run()? {
        let view = call.state.store.projected(planned.view);
        return Ok((Applied { view, ..planned }, warnings));
    }
    let applied = call.state.store.apply(object, author, force).await;
    Ok((applied.map_err(|error| refusal(call, error))?, warnings))
}

fn refusal(call: &Call<'_>, error: WriteError) -> ApiError {
    match (error, call.target.behind) {
        (WriteError::Owned { key, fields }, Some(Behind::Served(Subresource::Scale))) => {
            ApiError::owned(&key, &fields, scale::API_VERSION)
        }
        (error, _) => error.into(),
    }
}

/// An apply is somebody's: its program's name is not enough.
pub(super) fn check_manager_is_named(call: &Call<'_>) -> ApiResult<()> {
    if !call.query.text("fieldManager").is_empty() {
        return Ok(());
    }
    let missing = "Required value: is required for apply patch";
    let message = format!("PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: {missing}");
    let error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
    Err(error.because("FieldValueRequired", missing, "fieldManager"))
}

/// What an object that is to be applied demands of the stored one.
pub(super) fn demanded(object: &Object) -> ApiResult<Precondition> {
    let said = object.pointer("/metadata/managedFields");
    if said.is_some_and(|fields| !fields.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    precondition(object)
}

/// What an apply of a status names: it, and which object's.
fn status_alone(key: &ObjectKey, mut object: Object) -> Object {
    let mut alone = Object::new(key);
    if let Some(status) = object.0.remove("status") {
        alone.set(&["status"], status);
    }
    alone
}

/// Whether an apply of kubectl's meets only what its client-side applies wrote: as in Kubernetes, who goes over to
/// `--server-side` is in nobody's way.
fn is_own(error: &WriteError, before: Option<&View>, author: &Author) -> bool {
    let WriteError::Owned { fields, .. } = error else {
        return false;
    };
    let is_applied = before.is_some_and(|view| view.object.annotation(LAST_APPLIED).is_some());
    let client_side = |field: &OwnedField| field.manager == "kubectl-client-side-apply";
    is_applied && author.manager == "kubectl" && fields.iter().all(client_side)
}

/// Checks what an apply would make of an object. Returns what is warned about, without the object's name.
pub(crate) fn check_applied(
    key: &ObjectKey,
    before: Option<&View>,
    sent: &Object,
    planned: &View,
) -> ApiResult<Vec<String>> {
    let after = shown(planned);
    let mut errors = validate::validate(&after);
    if let Some(before) = before {
        errors.extend(validate::validate_update(&shown(before), &after));
    }
    refused(key, errors)?;
    // What is sent is what the user wrote, each time.
    Ok(validate::warnings(sent, None))
}
