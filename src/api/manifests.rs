//! Applying bundles of manifests: all validated before any is stored. The API, `psctl` and Git come through here.

use std::collections::HashSet;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use schemas::manifest::{self, Parsed};
use schemas::{KINDS, Kind, Object, ObjectKey};
use serde_json::{Value, json};
use store::{Author, Outcome, Store, Via};

use super::content::{MAX_MANIFEST_BYTES, add_warnings, read_body};
use super::resources::{
    DeleteOptions, check_applied, check_manager, cleaned, delete_object, tidied, unknown,
};
use super::state::{ApiState, user_of};
use super::status::{ApiError, ApiResult, Cause};
use super::target::Query;

/// The field manager of bundles, where the client names none.
const DEFAULT_MANAGER: &str = "manifests";
/// Objects whose faults are listed in one answer.
const MAX_REFUSALS_SHOWN: usize = 50;

/// Who applies a bundle, and how.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    /// The field manager decides what a later apply removes.
    pub author: Author,
    /// For objects that name no namespace.
    pub default_namespace: String,
    /// Validate and say what would happen.
    pub dry_run: bool,
}

/// What became of one object of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedObject {
    pub key: ObjectKey,
    pub outcome: Outcome,
    pub warnings: Vec<String>,
}

/// An object of a bundle that cannot be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// `Deployment default/web`, or its place in the bundle.
    pub object: String,
    pub error: ApiError,
}

/// Why a bundle was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Nothing was stored.
    #[error("{}", refusals_text(.0))]
    Refused(Vec<Refusal>),
    /// The store refused an object after others were stored.
    #[error("stopped at {key} after {} objects: {error}", applied.len())]
    Stopped {
        key: ObjectKey,
        applied: Vec<AppliedObject>,
        error: ApiError,
    },
}

/// Applies a bundle by server-side apply. Namespaces go first; those in the bundle count as existing for the rest of it.
/// Fields that other managers own are taken over: the bundle says what the user wants.
///
/// # Errors
/// All that is wrong with any object; then nothing is stored. What the store refuses later (its disk is full) stops
/// the rest.
pub async fn apply_all(
    store: &Store,
    objects: Vec<Object>,
    options: &ApplyOptions,
) -> Result<Vec<AppliedObject>, ManifestError> {
    let planned = plan(store, objects, options).map_err(ManifestError::Refused)?;
    let mut applied = Vec::new();
    for Planned {
        key,
        object,
        outcome,
        warnings,
    } in planned
    {
        let outcome = if options.dry_run {
            outcome
        } else {
            match store.apply(object, options.author.clone(), true).await {
                Ok(done) => done.outcome,
                Err(error) => {
                    return Err(ManifestError::Stopped {
                        key,
                        applied,
                        error: error.into(),
                    });
                }
            }
        };
        applied.push(AppliedObject {
            key,
            outcome,
            warnings,
        });
    }
    Ok(applied)
}

struct Planned {
    key: ObjectKey,
    object: Object,
    outcome: Outcome,
    warnings: Vec<String>,
}

/// Checks every object as it would be after its apply, in the order of application.
fn plan(store: &Store, objects: Vec<Object>, options: &ApplyOptions) -> Result<Vec<Planned>, Vec<Refusal>> {
    let (mut refusals, mut named, mut keys) = (Vec::new(), Vec::new(), HashSet::new());
    for (index, object) in objects.into_iter().enumerate() {
        match named_object(object, &options.default_namespace) {
            Ok((key, ..)) if !keys.insert(key.clone()) => {
                let error = ApiError::bad_request("is in the bundle more than once");
                refusals.push(Refusal {
                    object: title(&key),
                    error,
                });
            }
            Ok(found) => named.push(found),
            Err((title, error)) => {
                let object = title.unwrap_or_else(|| format!("object {}", index + 1));
                refusals.push(Refusal { object, error });
            }
        }
    }
    named.sort_by_key(|(key, ..)| key.kind != Kind::Namespace);
    let mut planned = Vec::new();
    for (key, object, mut warnings) in named {
        let checked = check_bundled(store, &keys, &key).and_then(|()| {
            let after = store.apply_dry(object.clone(), &options.author, true)?;
            let before = store.get(&key);
            warnings.extend(check_applied(&key, before.as_ref(), &object, &after.view)?);
            Ok(after.outcome)
        });
        match checked {
            Ok(outcome) => planned.push(Planned {
                key,
                object,
                outcome,
                warnings,
            }),
            Err(error) => refusals.push(Refusal {
                object: title(&key),
                error,
            }),
        }
    }
    if refusals.is_empty() {
        Ok(planned)
    } else {
        Err(refusals)
    }
}

/// An object with its key and warnings about fields that Kubernetes does not have.
type Named = (ObjectKey, Object, Vec<String>);

/// Finds the kind of an object and fills in its namespace; what only a server can say of it goes.
fn named_object(object: Object, default_namespace: &str) -> Result<Named, (Option<String>, ApiError)> {
    let warnings = unknown(&object);
    let mut object = tidied(object);
    let (api_version, kind) = (
        object.str_at("/apiVersion").to_owned(),
        object.str_at("/kind").to_owned(),
    );
    let title = (!object.name().is_empty()).then(|| format!("{kind} {}", object.name()));
    let Some(kind) = object
        .kind()
        .filter(|kind| kind.row().served && *kind != Kind::Event)
    else {
        let message = format!("no matches for kind \"{kind}\" in version \"{api_version}\"");
        return Err((title, ApiError::bad_request(message)));
    };
    if kind.is_namespaced() && object.namespace().is_empty() {
        object.set(&["metadata", "namespace"], default_namespace);
    }
    let object = cleaned(kind, object);
    match object.key() {
        Some(key) => Ok((key, object, warnings)),
        None => {
            let cause = Cause {
                reason: "FieldValueRequired".into(),
                message: "Required value: name is required (a bundle is applied by name)".into(),
                field: "metadata.name".into(),
            };
            Err((title, ApiError::invalid(kind, "", vec![cause])))
        }
    }
}

/// The namespace is there, or comes with the bundle.
fn check_bundled(store: &Store, bundle: &HashSet<ObjectKey>, key: &ObjectKey) -> ApiResult<()> {
    let namespace = ObjectKey::cluster(Kind::Namespace, key.namespace.clone());
    match super::resources::check_namespace(store, key) {
        Err(error) if error.code == StatusCode::NOT_FOUND && bundle.contains(&namespace) => Ok(()),
        result => result,
    }
}

/// Names an object for people: `Deployment default/web`.
pub(super) fn title(key: &ObjectKey) -> String {
    if key.namespace.is_empty() {
        format!("{} {}", key.kind, key.name)
    } else {
        format!("{} {}/{}", key.kind, key.namespace, key.name)
    }
}

fn refusals_text(refusals: &[Refusal]) -> String {
    let shown: Vec<String> = refusals
        .iter()
        .take(MAX_REFUSALS_SHOWN)
        .map(|refusal| format!("{}: {}", refusal.object, refusal.error.message))
        .collect();
    let more = refusals.len().saturating_sub(MAX_REFUSALS_SHOWN);
    let more = if more == 0 {
        String::new()
    } else {
        format!("; and {more} more")
    };
    format!("{}{more}", shown.join("; "))
}

impl From<ManifestError> for ApiError {
    fn from(error: ManifestError) -> Self {
        let message = error.to_string();
        match error {
            ManifestError::Stopped { error, .. } => ApiError { message, ..error },
            ManifestError::Refused(refusals) => {
                // One fault has one code; several have none in common but that they are faults.
                let mut codes: Vec<_> = refusals
                    .iter()
                    .map(|refusal| (refusal.error.code, refusal.error.reason))
                    .collect();
                codes.dedup();
                let (code, reason) = match codes.as_slice() {
                    [one] => *one,
                    _ => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
                };
                let mut status = ApiError::new(code, reason, message);
                for refusal in refusals.into_iter().take(MAX_REFUSALS_SHOWN) {
                    for cause in refusal.error.details.causes {
                        status = status.because(
                            &cause.reason,
                            format!("{}: {}", refusal.object, cause.message),
                            &cause.field,
                        );
                    }
                }
                status
            }
        }
    }
}

// ---------------------------------------------------------------- HTTP

/// `POST /api/v1/manifests`.
pub(crate) async fn apply(State(state): State<ApiState>, request: Request) -> ApiResult {
    let user = user_of(request.extensions(), request.headers());
    let query = Query::of(request.uri())?;
    let or = |text: &str, default: &str| {
        if text.is_empty() {
            default.to_owned()
        } else {
            text.to_owned()
        }
    };
    check_manager(query.text("fieldManager"))?;
    let options = ApplyOptions {
        author: Author {
            via: Via::Apply,
            ..state.author(&or(query.text("fieldManager"), DEFAULT_MANAGER), &user)
        },
        default_namespace: or(query.text("namespace"), "default"),
        dry_run: query.dry_run()?,
    };
    let bytes = read_body(request.into_body(), MAX_MANIFEST_BYTES).await?;
    let Parsed { objects, errors } = manifest::parse_all(&bytes);
    if !errors.is_empty() {
        let mut refusals: Vec<Refusal> = errors.iter().map(unreadable).collect();
        refusals.extend(plan(&state.store, objects, &options).err().into_iter().flatten());
        return Err(ManifestError::Refused(refusals).into());
    }
    if objects.is_empty() {
        return Err(ApiError::bad_request("the manifest has no objects"));
    }
    let applied = apply_all(&state.store, objects, &options).await?;
    let mut warnings = Vec::new();
    let items: Vec<Value> = applied
        .iter()
        .map(|applied| {
            let named = applied
                .warnings
                .iter()
                .map(|warning| format!("{}: {warning}", title(&applied.key)));
            warnings.extend(named);
            let result = match applied.outcome {
                Outcome::Created => "created",
                Outcome::Configured => "configured",
                Outcome::Unchanged => "unchanged",
            };
            item(&applied.key, result, &applied.warnings)
        })
        .collect();
    let mut response = Json(result_list(items)).into_response();
    add_warnings(&mut response, &warnings);
    Ok(response)
}

fn unreadable(error: &manifest::ManifestError) -> Refusal {
    Refusal {
        object: error.place(),
        error: ApiError::bad_request(error.problem.explained()),
    }
}

fn result_list(items: Vec<Value>) -> Value {
    json!({"kind": "ManifestResultList", "apiVersion": "podman-swarm.io/v1", "metadata": {}, "items": items})
}

fn item(key: &ObjectKey, result: &str, warnings: &[String]) -> Value {
    let row = key.kind.row();
    let mut item =
        json!({"apiVersion": row.api_version(), "kind": row.name, "name": key.name, "result": result});
    if !key.namespace.is_empty() {
        item["namespace"] = key.namespace.clone().into();
    }
    if !warnings.is_empty() {
        item["warnings"] = warnings.into();
    }
    item
}

/// `DELETE /api/v1/manifests/{name}?kind=`: a cluster-scoped object.
pub(crate) async fn delete_cluster_scoped(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    request: Request,
) -> ApiResult {
    let asked = Asked::of(&request)?;
    let kind = asked.kind.filter(|kind| !kind.is_namespaced());
    let kind = kind.ok_or_else(|| {
        ApiError::bad_request(
            "parameter kind: must name a cluster-scoped kind (or give the namespace in the path)",
        )
    })?;
    delete(&state, &asked, vec![ObjectKey::cluster(kind, name)]).await
}

/// `DELETE /api/v1/manifests/{namespace}/{name}`, with `?kind=` or everything of the name that a manifest made.
pub(crate) async fn delete_namespaced(
    State(state): State<ApiState>,
    Path((namespace, name)): Path<(String, String)>,
    request: Request,
) -> ApiResult {
    let asked = Asked::of(&request)?;
    let keys = match asked.kind {
        Some(kind) => vec![ObjectKey::new(kind, namespace, name)],
        None => made_by_manifests(&state.store, &namespace, &name),
    };
    delete(&state, &asked, keys).await
}

/// What controllers and nodes made has an owner or is computed; the rest came from a manifest.
fn made_by_manifests(store: &Store, namespace: &str, name: &str) -> Vec<ObjectKey> {
    KINDS
        .iter()
        .filter(|row| row.served && !row.derived && row.kind.is_namespaced())
        .map(|row| ObjectKey::new(row.kind, namespace, name))
        .filter(|key| {
            store
                .get(key)
                .is_some_and(|view| view.stored && view.object.controller().is_none())
        })
        .collect()
}

/// What the query of a deletion says, and who makes it.
struct Asked {
    user: String,
    kind: Option<Kind>,
    dry_run: bool,
}

impl Asked {
    fn of(request: &Request) -> ApiResult<Self> {
        let query = Query::of(request.uri())?;
        let kind = match query.text("kind") {
            "" => None,
            word => Some(Kind::from_user(word).ok_or_else(|| {
                ApiError::bad_request(format!("parameter kind: there is no kind \"{word}\""))
            })?),
        };
        Ok(Self {
            user: user_of(request.extensions(), request.headers()),
            kind,
            dry_run: query.dry_run()?,
        })
    }
}

async fn delete(state: &ApiState, asked: &Asked, keys: Vec<ObjectKey>) -> ApiResult<Response> {
    let options = DeleteOptions::dry(asked.dry_run);
    let mut items = Vec::new();
    for key in &keys {
        delete_object(state, key, &options, state.author(DEFAULT_MANAGER, &asked.user)).await?;
        items.push(item(key, "deleted", &[]));
    }
    if items.is_empty() {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "no object of this name was made by a manifest",
        ));
    }
    Ok(Json(result_list(items)).into_response())
}
