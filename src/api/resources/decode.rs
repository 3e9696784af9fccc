//! Objects as clients send them, read as Kubernetes' decoder reads them: what is no field goes before anything is stored, and
//! who asks for it (`fieldValidation`) hears of it, or is refused.

use http::HeaderMap;
use schemas::{Kind, Object, manifest, validate};

use crate::api::content::{PROTOBUF, content_type, parse_value, unsupported_media};
use crate::api::status::{ApiError, ApiResult, Cause};

/// What is read where an object is expected.
const OBJECT_TYPES: [&str; 3] = ["application/json", "application/yaml", PROTOBUF];

/// What happens with what a strict decoder finds (`fieldValidation`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Validation {
    Ignore,
    Warn,
    Strict,
}

impl Validation {
    pub(super) fn parse(text: &str) -> ApiResult<Self> {
        match text {
            "Ignore" => Ok(Self::Ignore),
            "" | "Warn" => Ok(Self::Warn),
            "Strict" => Ok(Self::Strict),
            other => Err(ApiError::bad_request(format!(
                "parameter fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }

    /// Returns what is warned about.
    ///
    /// # Errors
    /// What a strict client is refused for.
    fn judge(self, found: Vec<String>) -> Result<Vec<String>, String> {
        match self {
            Self::Ignore => Ok(Vec::new()),
            Self::Strict if !found.is_empty() => Err(format!("strict decoding error: {}", found.join(", "))),
            Self::Warn | Self::Strict => Ok(found),
        }
    }
}

/// Takes out of an object what is no field, and returns a sentence for each.
pub(crate) fn pruned(object: &mut Object) -> Vec<String> {
    let unknown = validate::prune(object).into_iter();
    unknown.map(|path| format!("unknown field \"{path}\"")).collect()
}

/// Reads what a client made: returns the object as it can be stored, and warnings.
///
/// # Errors
/// 400 for what is no field, to who asked for that.
pub(super) fn decoded(mut object: Object, validation: Validation) -> ApiResult<(Object, Vec<String>)> {
    let found = pruned(&mut object);
    match validation.judge(found) {
        Ok(warnings) => Ok((object, warnings)),
        Err(problem) => Err(undecodable(&object, &problem)),
    }
}

/// [`decoded`] for what a patch made of an object.
///
/// # Errors
/// 422, as in Kubernetes; without the object, which may be a Secret.
pub(super) fn patched(mut object: Object, validation: Validation) -> ApiResult<(Object, Vec<String>)> {
    let found = pruned(&mut object);
    match (validation.judge(found), object.kind()) {
        (Ok(warnings), _) => Ok((object, warnings)),
        (Err(problem), Some(kind)) => Err(unpatchable(kind, object.name(), problem)),
        (Err(problem), None) => Err(undecodable(&object, &problem)),
    }
}

fn unpatchable(kind: Kind, name: &str, problem: String) -> ApiError {
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: {problem}"),
        field: "patch".into(),
    };
    ApiError::invalid(kind, name, vec![cause])
}

/// Reads what is to be applied. Who owns a field that does not exist cannot be said, so that it is refused whatever the client
/// asks for.
///
/// # Errors
/// 400 (in Kubernetes, in these words, 500, after which clients try again).
pub(super) fn typed(mut object: Object) -> ApiResult<Object> {
    let unknown = validate::prune(&mut object).into_iter();
    let problems: Vec<String> = unknown
        .map(|path| format!(".{path}: field not declared in schema"))
        .collect();
    if problems.is_empty() {
        return Ok(object);
    }
    Err(ApiError::bad_request(format!(
        "failed to create typed patch object ({}/{}; {}, Kind={}): {}",
        object.namespace(),
        object.name(),
        object.str_at("/apiVersion"),
        object.str_at("/kind"),
        problems.join(", ")
    )))
}

fn undecodable(object: &Object, problem: &str) -> ApiError {
    // Kubernetes leaves the group out of what it says.
    let version = object.str_at("/apiVersion").rsplit('/').next();
    ApiError::bad_request(format!(
        "{kind} in version \"{}\" cannot be handled as a {kind}: {problem}",
        version.unwrap_or_default(),
        kind = object.str_at("/kind"),
    ))
}

// ---------------------------------------------------------------- bodies

/// Reads one object in JSON, YAML or protobuf.
pub(super) fn parse_object(headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Object> {
    match content_type(headers) {
        "" | "application/json" | PROTOBUF => Object::from_value(parse_value(headers, bytes)?)
            .ok_or_else(|| ApiError::bad_request("the body is not an object")),
        "application/yaml" | "application/x-yaml" | "text/yaml" => parse_yaml(bytes),
        _ => Err(unsupported_media(&OBJECT_TYPES)),
    }
}

/// Reads one YAML document (JSON is YAML, too).
pub(super) fn parse_yaml(bytes: &[u8]) -> ApiResult<Object> {
    let mut objects = manifest::parse(bytes)
        .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))?;
    match (objects.pop(), objects.is_empty()) {
        (Some(object), true) => Ok(object),
        _ => Err(ApiError::bad_request("the body is not one object")),
    }
}
