//! create, update and patch: read, confine to what the request may write, validate, store.

use axum::body::Body;
use http::StatusCode;
use schemas::{
    Ending, FieldError, Kind, Object, ObjectKey, Subresource, deletion, event, hex, patch as patches, time,
    validate,
};
use serde_json::Value;
use store::{Precondition, Revision, Store, View};

use super::apply::{APPLY_TYPE, apply};
use super::decode::{self, Validation, decoded, parse_object};
use super::edit::{Part, cleaned, confined, stored, stored_beside, tidied};
use super::options::resource_version;
use super::{Call, answered, foreign, object_answer, shown};
use crate::api::content::{
    self, MAX_OBJECT_BODY_BYTES, MAX_OBJECT_BYTES, content_type, read_body, unsupported_media,
};
use crate::api::events::{self, uuid};
use crate::api::status::{ApiError, ApiResult, Cause};
use crate::api::target::Behind;

const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    APPLY_TYPE,
];
/// How often a name is drawn for `generateName` before we give up.
const NAME_ATTEMPTS: usize = 8;
/// As Kubernetes: a generated name has this many characters of its own, and at most 63 in all.
const NAME_SUFFIX: usize = 5;
const MAX_GENERATED_NAME: usize = 63;
/// Characters of a name in a warning, which has 256 bytes for the path of a field, too.
const MAX_NAME_SHOWN: usize = 63;

/// Answers `POST` to a collection.
pub(super) async fn create(call: &Call<'_>, body: Body) -> ApiResult {
    let kind = call.kind();
    let validation = Validation::parse(call.query.text("fieldValidation"))?;
    call.accepted()?;
    if kind.is_namespaced() && call.target.namespace.is_none() {
        return Err(ApiError::method_not_allowed());
    }
    let bytes = read_body(body, MAX_OBJECT_BODY_BYTES).await?;
    let (object, duplicates) = parse_object(call.target.row, &call.headers, &bytes)?;
    let object = addressed(call, object, None)?;
    if !object.str_at("/metadata/resourceVersion").is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let (object, warnings) = decoded((object, duplicates), validation)?;
    created(call, cleaned(kind, tidied(object)), warnings).await
}

/// Creates an object and answers 201, with warnings about what was read and what has no effect.
async fn created(call: &Call<'_>, object: Object, read: Vec<String>) -> ApiResult {
    let (kind, dry_run) = (call.kind(), call.query.dry_run()?);
    let prefix = object.str_at("/metadata/generateName").to_owned();
    let generate = object.name().is_empty() && !prefix.is_empty();
    for attempt in 1.. {
        let mut object = object.clone();
        if generate {
            object.set(&["metadata", "name"], generated_name(&prefix));
        }
        let key = key_of(&object, kind)?;
        check_namespace(&call.state.store, &key)?;
        let warnings = check_new(&key, &object)?;
        object = event::in_group(kind.row().group, object);
        if kind == Kind::Event {
            events::check_size(&object)?;
        }
        let view = if kind == Kind::Event {
            event_created(call, &key, object, dry_run)?
        } else if dry_run {
            answered(&call.state.store.create_dry(&object, &call.author()?)?)
        } else {
            match call.state.store.create(object, call.author()?).await {
                Err(store::WriteError::Exists(_)) if generate && attempt < NAME_ATTEMPTS => continue,
                result => answered(&result?),
            }
        };
        let mut response = object_answer(call, StatusCode::CREATED, view)?;
        content::add_warnings(&mut response, &[read, warnings].concat());
        return Ok(response);
    }
    Err(ApiError::internal("no name could be generated"))
}

/// The characters of Kubernetes' generated names: no vowels, hence no words.
fn generated_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let suffix = rand::random::<[u8; NAME_SUFFIX]>();
    let suffix = suffix.map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
    let prefix: String = prefix.chars().take(MAX_GENERATED_NAME - NAME_SUFFIX).collect();
    format!("{prefix}{}", String::from_iter(suffix))
}

/// Events are kept by this node and expire; they are no documents.
fn event_created(call: &Call<'_>, key: &ObjectKey, mut object: Object, dry_run: bool) -> ApiResult<Object> {
    if call.state.store.get(key).is_some() {
        return Err(ApiError::exists(key));
    }
    object.set(&["metadata", "uid"], uuid(&hex(&rand::random::<[u8; 16]>())));
    object.set(
        &["metadata", "creationTimestamp"],
        time::to_rfc3339(call.state.clock.unix_seconds()),
    );
    if dry_run {
        return Ok(validate::defaulted(&object));
    }
    call.state.events.keep(key.clone(), object);
    super::get_object(call.state, key)
}

/// Answers `PUT` of an object or of its status.
pub(super) async fn update(call: &Call<'_>, body: Body) -> ApiResult {
    let key = call.key()?;
    let validation = Validation::parse(call.query.text("fieldValidation"))?;
    let bytes = read_body(body, MAX_OBJECT_BODY_BYTES).await?;
    let (object, duplicates) = parse_object(call.target.row, &call.headers, &bytes)?;
    let object = addressed(call, object, Some(&key))?;
    let meant = precondition(&object)?.resource_version;
    if let Some(answer) = foreign::write(call, &key, meant, &bytes).await? {
        return Ok(answer);
    }
    let (object, read) = decoded((object, duplicates), validation)?;
    let is_meant_new = meant.is_none() && call.target.behind.is_none() && is_created_by_put(key.kind);
    if is_meant_new && call.state.store.get(&key).is_none() {
        return created(call, cleaned(key.kind, tidied(object)), read).await;
    }
    let change = |_: &Object| Ok(object.clone());
    let (view, warnings) = change_object(call, &key, validation, &change).await?;
    let mut response = object_answer(call, StatusCode::OK, view)?;
    content::add_warnings(&mut response, &[read, warnings].concat());
    Ok(response)
}

/// Kinds whose objects Kubernetes makes at a `PUT` (`AllowCreateOnUpdate`).
fn is_created_by_put(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Endpoints | Kind::Lease | Kind::PodTemplate | Kind::Service
    )
}

/// Answers `PATCH` of an object or of its status.
pub(super) async fn patch(call: &Call<'_>, body: Body) -> ApiResult {
    let key = call.key()?;
    let validation = Validation::parse(call.query.text("fieldValidation"))?;
    let media = content_type(&call.headers).to_owned();
    if !PATCH_TYPES.contains(&media.as_str()) {
        return Err(unsupported_media(&PATCH_TYPES));
    }
    if media == APPLY_TYPE {
        let bytes = read_body(body, MAX_OBJECT_BYTES).await?;
        return apply(call, &key, &bytes, validation).await;
    }
    let bytes = read_body(body, MAX_OBJECT_BODY_BYTES).await?;
    let (patch, duplicates) = decode::parse_patch(&media, &bytes)?;
    if let Some(answer) = foreign::write(call, &key, named_version(&patch)?, &bytes).await? {
        return Ok(answer);
    }
    let change = |object: &Object| patched(&media, object, &patch);
    let (view, warnings) = change_sent(call, &key, (validation, duplicates), &change).await?;
    let mut response = object_answer(call, StatusCode::OK, view)?;
    content::add_warnings(&mut response, &warnings);
    Ok(response)
}

/// Applies a patch of one of the three client-side kinds.
pub(super) fn patched(media: &str, object: &Object, patch: &Value) -> ApiResult<Object> {
    let result = match media {
        "application/json-patch+json" => patches::json_patch(object, patch),
        "application/merge-patch+json" => patches::merge_patch(object, patch),
        _ => patches::strategic_merge_patch(object, patch),
    };
    result.map_err(|error| {
        let message = format!("the patch cannot be applied: {error}");
        if matches!(error, patches::PatchError::NotOperations(_)) {
            return ApiError::bad_request(message);
        }
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    })
}

pub(super) fn part_of(call: &Call<'_>) -> Part {
    match call.target.behind {
        Some(Behind::Served(Subresource::Status)) => Part::Status,
        _ => Part::Main,
    }
}

/// Changes an object by `edit`, which gets what is shown of it and returns what shall be shown. If that has a uid or a
/// version, they must be the object's: this is how clients say what they mean.
pub(super) async fn change_object(
    call: &Call<'_>,
    key: &ObjectKey,
    validation: Validation,
    edit: &(dyn Fn(&Object) -> ApiResult<Object> + Send + Sync),
) -> ApiResult<(Object, Vec<String>)> {
    change_sent(call, key, (validation, Vec::new()), edit).await
}

/// [`change_object`] by what has keys twice (`duplicates`): of these clients hear with the rest.
async fn change_sent(
    call: &Call<'_>,
    key: &ObjectKey,
    (validation, duplicates): (Validation, Vec<String>),
    edit: &(dyn Fn(&Object) -> ApiResult<Object> + Send + Sync),
) -> ApiResult<(Object, Vec<String>)> {
    let part = part_of(call);
    let view = call
        .state
        .store
        .get(key)
        .ok_or_else(|| ApiError::not_found(key))?;
    if key.kind == Kind::Event {
        return change_event(call, &view, (validation, duplicates), edit);
    }
    let before = shown(&view);
    let mut warnings = Vec::new();
    let mut step = |raw: &Object| -> ApiResult<Object> {
        // Of a computed object the document is only what clients wrote; they see, and edit, the whole.
        let base = if key.kind.row().derived {
            before.clone()
        } else {
            validate::defaulted(raw)
        };
        let sent = (edit(&base)?, duplicates.clone());
        let (edited, unknown) = decode::patched(&base, sent, validation)?;
        check_meant(key, raw, &base, &edited)?;
        check_identity(&base, &edited)?;
        let edited = tidied(confined(&base, edited, part, key.kind.has_status()));
        match part {
            Part::Main => warnings = check_changed(key, &base, &edited)?,
            Part::Status => check_status(key, &edited)?,
        }
        warnings.splice(..0, unknown);
        Ok(if key.kind.row().derived {
            stored_beside(raw, &base, &edited)
        } else {
            stored(raw, &base, &edited)
        })
    };
    let (store, author) = (&call.state.store, call.author()?);
    if call.query.dry_run()? {
        let changed = match view.stored {
            true => store.update_dry(key, &author, step)?,
            false => store.create_dry(&step(&Object::new(key))?, &author)?,
        };
        return Ok((answered(&store.projected(changed)), warnings));
    }
    let changed = if view.stored {
        let anything = Precondition::default();
        store
            .update_with_managed_fields(key, &anything, author, step)
            .await?
    } else {
        // A computed object without a document gets one, of what this request changes.
        store.create(step(&Object::new(key))?, author).await?
    };
    let changed = finish_deletion(call, changed).await?;
    Ok((answered(&changed), warnings))
}

/// Changes an Event of this node, which is no document: nothing merges, and nobody owns fields of it.
fn change_event(
    call: &Call<'_>,
    view: &View,
    (validation, duplicates): (Validation, Vec<String>),
    edit: &(dyn Fn(&Object) -> ApiResult<Object> + Send + Sync),
) -> ApiResult<(Object, Vec<String>)> {
    let key = &view.key;
    let before = shown(view);
    let base = event::in_group(call.target.row.group, before.clone());
    let (edited, mut warnings) = decode::patched(&base, (edit(&base)?, duplicates), validation)?;
    check_meant(key, &view.object, &base, &edited)?;
    check_identity(&base, &edited)?;
    // What the newer group asks of a new one it does not ask of a change, which may be of an older one.
    let edited = tidied(confined(&base, edited, Part::Main, false));
    let mut changed = event::in_group(key.kind.row().group, edited);
    let mut errors = validate::validate(&changed);
    errors.extend(validate::validate_update(&before, &changed));
    if call.target.row.group != key.kind.row().group {
        errors.extend(event::validate_strict_update(&before, &changed));
    }
    refused(key, errors)?;
    warnings.extend(validate::warnings(&changed, Some(&before)));
    changed.remove(&["metadata", "resourceVersion"]);
    changed.remove(&["metadata", "managedFields"]);
    events::check_size(&changed)?;
    if call.query.dry_run()? {
        return Ok((changed, warnings));
    }
    if !call.state.events.replace(view, changed) {
        return Err(ApiError::modified(key));
    }
    Ok((super::get_object(call.state, key)?, warnings))
}

/// An object whose deletion waited for its finalizers goes with the last of them. Pods that are placed are finished by
/// their node, namespaces by their controller.
async fn finish_deletion(call: &Call<'_>, view: View) -> ApiResult<View> {
    let object = &view.object;
    let waits_for_others = match view.key.kind.row().ending {
        Ending::ByNode => !object.str_at("/spec/nodeName").is_empty(),
        Ending::ByController => true,
        Ending::AtOnce => false,
    };
    if !object.is_terminating() || deletion::is_held(object) || waits_for_others {
        return Ok(view);
    }
    let precondition = Precondition {
        uid: Some(object.uid().to_owned()),
        resource_version: None,
    };
    match call
        .state
        .store
        .remove(&view.key, &precondition, call.author()?)
        .await
    {
        Ok(_) | Err(store::WriteError::NotFound(_)) => Ok(view),
        Err(error) => Err(error.into()),
    }
}

// ---------------------------------------------------------------- what is meant

/// Checks that a body is of the kind, namespace and name that the path says, and fills them in.
pub(super) fn addressed(call: &Call<'_>, mut object: Object, key: Option<&ObjectKey>) -> ApiResult<Object> {
    let row = call.target.row;
    let (api_version, kind) = (object.str_at("/apiVersion"), object.str_at("/kind"));
    if !kind.is_empty() && kind != row.name {
        return Err(ApiError::bad_request(format!(
            "the kind in the data ({kind}) does not match the expected kind ({})",
            row.name
        )));
    }
    if !api_version.is_empty() && api_version != row.api_version() {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            row.api_version()
        )));
    }
    check_place(call, &object)?;
    object.set(&["apiVersion"], row.api_version());
    object.set(&["kind"], row.name);
    if let Some(namespace) = &call.target.namespace {
        object.set(&["metadata", "namespace"], namespace.clone());
    }
    if let Some(key) = key {
        object.set(&["metadata", "name"], key.name.clone());
    }
    Ok(object)
}

/// Checks that a body names no other namespace and name than the path.
pub(super) fn check_place(call: &Call<'_>, object: &Object) -> ApiResult<()> {
    if let Some(namespace) = &call.target.namespace
        && !object.namespace().is_empty()
        && object.namespace() != namespace
    {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    match &call.target.name {
        Some(name) if !object.name().is_empty() && object.name() != name => {
            Err(ApiError::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                object.name(),
            )))
        }
        Some(_) | None => Ok(()),
    }
}

fn key_of(object: &Object, kind: Kind) -> ApiResult<ObjectKey> {
    object.key().ok_or_else(|| {
        let cause = Cause {
            reason: "FieldValueRequired".into(),
            message: "Required value: name or generateName is required".into(),
            field: "metadata.name".into(),
        };
        ApiError::invalid(kind, "", vec![cause])
    })
}

/// What a client demands of the stored object, from the metadata that it sends.
pub(super) fn precondition(object: &Object) -> ApiResult<Precondition> {
    Ok(Precondition {
        uid: Some(object.uid().to_owned()).filter(|uid| !uid.is_empty()),
        resource_version: resource_version(object.str_at("/metadata/resourceVersion"))?,
    })
}

/// The version that a patch names, of whatever kind it is.
pub(super) fn named_version(patch: &Value) -> ApiResult<Option<Revision>> {
    let version = match patch {
        Value::Array(operations) => operations
            .iter()
            .find(|operation| operation["path"] == "/metadata/resourceVersion")
            .map(|operation| &operation["value"]),
        whole => whole.pointer("/metadata/resourceVersion"),
    };
    resource_version(version.and_then(Value::as_str).unwrap_or_default())
}

// ---------------------------------------------------------------- checks

pub(super) fn check_precondition(key: &ObjectKey, view: &View, precondition: &Precondition) -> ApiResult<()> {
    if let Some(uid) = &precondition.uid
        && uid != view.object.uid()
    {
        return Err(ApiError::another(key, uid, view.object.uid()));
    }
    match precondition.resource_version {
        Some(version) if version != view.revision => Err(ApiError::modified(key)),
        _ => Ok(()),
    }
}

/// Checks uid and version of an edit against what is stored now, where nobody else writes (`raw`), or, of a computed
/// object without a document, against what is shown (`base`).
pub(super) fn check_meant(key: &ObjectKey, raw: &Object, base: &Object, edited: &Object) -> ApiResult<()> {
    let version = |object: &Object| object.str_at("/metadata/resourceVersion").to_owned();
    let current = match version(raw) {
        none if none.is_empty() => version(base),
        current => current,
    };
    if !edited.uid().is_empty() && edited.uid() != base.uid() {
        return Err(ApiError::another(key, edited.uid(), base.uid()));
    }
    match version(edited) {
        any if any.is_empty() || any == "0" => Ok(()),
        meant if meant == current => Ok(()),
        _ => Err(ApiError::modified(key)),
    }
}

/// A patch cannot turn an object into another one.
fn check_identity(base: &Object, edited: &Object) -> ApiResult<()> {
    let same = |pointer: &str| base.str_at(pointer) == edited.str_at(pointer);
    for part in ["name", "namespace"] {
        let pointer = format!("/metadata/{part}");
        if !same(&pointer) {
            return Err(ApiError::bad_request(format!(
                "the {part} of the object ({}) does not match the {part} on the URL ({})",
                edited.str_at(&pointer),
                base.str_at(&pointer),
            )));
        }
    }
    if !same("/kind") || !same("/apiVersion") {
        return Err(ApiError::bad_request("the kind of the object cannot be changed"));
    }
    Ok(())
}

/// An object can be made in a namespace that is there and stays.
pub(crate) fn check_namespace(store: &Store, key: &ObjectKey) -> ApiResult<()> {
    if !key.kind.is_namespaced() {
        return Ok(());
    }
    let namespace = ObjectKey::cluster(Kind::Namespace, key.namespace.clone());
    match store.get(&namespace) {
        None => Err(ApiError::not_found(&namespace)),
        Some(view) if view.object.is_terminating() => Err(ApiError::forbidden(
            key,
            &format!(
                "unable to create new content in namespace {} because it is being terminated",
                key.namespace
            ),
        )
        .because(
            "NamespaceTerminating",
            format!("namespace {} is being terminated", key.namespace),
            "metadata.namespace",
        )),
        Some(_) => Ok(()),
    }
}

/// Turns field errors into causes.
fn field_causes(errors: Vec<FieldError>) -> Vec<Cause> {
    errors
        .into_iter()
        .map(|error| Cause {
            reason: error.reason.cause().to_owned(),
            message: error.message(),
            field: error.path,
        })
        .collect()
}

pub(super) fn refused(key: &ObjectKey, errors: Vec<FieldError>) -> ApiResult<()> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(key.kind, &key.name, field_causes(errors)))
}

/// Checks an object that is to be made, and returns what is warned about.
pub(crate) fn check_new(key: &ObjectKey, object: &Object) -> ApiResult<Vec<String>> {
    refused(key, validate::validate(object))?;
    Ok(of_object(key, validate::warnings(object, None)))
}

/// Puts the object before what is warned about: kubectl prints equal sentences once, however many objects they are about.
pub(super) fn of_object(key: &ObjectKey, warnings: Vec<String>) -> Vec<String> {
    let name = match key.name.get(..MAX_NAME_SHOWN) {
        Some(short) if short.len() < key.name.len() => format!("{short}..."),
        _ => key.name.clone(),
    };
    let warnings = warnings.into_iter();
    warnings
        .map(|warning| format!("{} \"{name}\": {warning}", key.kind))
        .collect()
}

pub(super) fn check_changed(key: &ObjectKey, old: &Object, new: &Object) -> ApiResult<Vec<String>> {
    let mut errors = validate::validate(new);
    errors.extend(validate::validate_update(old, new));
    refused(key, errors)?;
    Ok(of_object(key, validate::warnings(new, Some(old))))
}

/// Checks the types of a status; what is wrong elsewhere does not keep it from being written.
pub(super) fn check_status(key: &ObjectKey, object: &Object) -> ApiResult<()> {
    let mut errors = validate::validate(object);
    errors.retain(|error| error.path.starts_with("status"));
    refused(key, errors)
}
