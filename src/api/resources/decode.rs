//! Objects as clients send them, read as Kubernetes' decoder reads them: of what is no field, and of keys that are there twice,
//! clients hear, or are refused, as they ask (`fieldValidation`). Unknown fields are kept: a newer node may know them.

use http::HeaderMap;
use schemas::manifest::Problem;
use schemas::{Kind, KindRow, Object, manifest, validate};
use serde_json::Value;

use crate::api::content::{MAX_OBJECT_BYTES, PROTOBUF, content_type, parse_value, unsupported_media};
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

/// Returns a sentence for each field that Kubernetes does not have.
pub(crate) fn unknown(object: &Object) -> Vec<String> {
    let unknown = validate::unknown_fields(object).into_iter();
    unknown.map(|path| format!("unknown field \"{path}\"")).collect()
}

/// Reads what a client made: returns the object as it can be stored, and warnings.
///
/// # Errors
/// 400 for values of wrong types or not in Base64, and for what is no field or there twice to who asked for that.
pub(super) fn decoded((object, duplicates): Sent, validation: Validation) -> ApiResult<Sent> {
    let wrong = validate::undecodable(&object);
    if !wrong.is_empty() {
        let problems: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        return Err(undecodable(&object, &problems.join(", ")));
    }
    if let Some(byte) = schemas::illegal_base64(&object) {
        return Err(undecodable(
            &object,
            &format!("illegal base64 data at input byte {byte}"),
        ));
    }
    let found = [duplicates, unknown(&object)].concat();
    match validation.judge(found) {
        Ok(warnings) => Ok((object, warnings)),
        Err(problem) => Err(undecodable(&object, &problem)),
    }
}

/// [`decoded`] for what a patch made of an object, which says nothing new of what was in it before. `duplicates`: keys that
/// the patch has twice.
///
/// # Errors
/// 422, as in Kubernetes; without the object, which may be a Secret.
pub(super) fn patched(
    before: &Object,
    (object, duplicates): Sent,
    validation: Validation,
) -> ApiResult<Sent> {
    let known = unknown(before);
    let mut found = unknown(&object);
    found.retain(|sentence| !known.contains(sentence));
    match (validation.judge([duplicates, found].concat()), object.kind()) {
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

/// Reads what is to be applied: returns the object as it can be stored, and warnings.
///
/// # Errors
/// 400 (Kubernetes says this with 500, after which clients try again).
pub(super) fn typed((object, duplicates): Sent, validation: Validation) -> ApiResult<Sent> {
    let mut warnings = validation
        .judge(duplicates)
        .map_err(|problem| ApiError::bad_request(format!("error strict decoding YAML: {problem}")))?;
    let mut problems: Vec<String> = Vec::new();
    match validation {
        Validation::Ignore => {}
        Validation::Warn => warnings.extend(unknown(&object)),
        Validation::Strict => {
            let unknown = validate::unknown_fields(&object).into_iter();
            problems.extend(unknown.map(|path| format!(".{path}: field not declared in schema")));
        }
    }
    let wrong = validate::undecodable(&object).into_iter();
    problems.extend(wrong.map(|error| format!(".{error}")));
    if problems.is_empty() {
        return Ok((object, warnings));
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

/// An object as it was sent, and what a strict decoder says of keys that are there twice.
pub(super) type Sent = (Object, Vec<String>);

/// Reads one object in JSON, YAML or protobuf, sent to a path of `row`.
pub(super) fn parse_object(row: &KindRow, headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Sent> {
    let (value, duplicates) = match content_type(headers) {
        PROTOBUF => (parse_value(headers, bytes)?, Vec::new()),
        "" | "application/json" => parse_json(bytes)?,
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            let api_version = row.api_version();
            return parse_yaml(bytes, Some((&api_version, row.name)));
        }
        _ => return Err(unsupported_media(&OBJECT_TYPES)),
    };
    let object =
        Object::from_value(value).ok_or_else(|| ApiError::bad_request("the body is not an object"))?;
    if bytes.len() > MAX_OBJECT_BYTES && manifest::object_bytes(&object) > MAX_OBJECT_BYTES {
        return Err(ApiError::too_large(MAX_OBJECT_BYTES));
    }
    Ok((object, duplicates))
}

/// Reads one value in JSON; of keys that are there twice the last counts.
fn parse_json(bytes: &[u8]) -> ApiResult<(Value, Vec<String>)> {
    manifest::json_last_wins(bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON that can be read: {error}")))
}

/// Reads one YAML document (JSON is YAML, too). `assumed`: its version and kind, where it does not say them.
pub(super) fn parse_yaml(bytes: &[u8], assumed: Option<(&str, &str)>) -> ApiResult<Sent> {
    let (mut objects, mut duplicates) =
        manifest::parse_last_wins(bytes, assumed).map_err(|error| match error.problem {
            Problem::ObjectTooLarge(_) => ApiError::too_large(MAX_OBJECT_BYTES),
            _ => ApiError::bad_request(format!("error decoding YAML: {error}")),
        })?;
    if duplicates.first().is_some_and(|text| text.starts_with("line ")) {
        duplicates = vec![format!("yaml: unmarshal errors:\n  {}", duplicates.join("\n  "))];
    }
    match (objects.pop(), objects.is_empty()) {
        (Some(object), true) => Ok((object, duplicates)),
        _ => Err(ApiError::bad_request("the body is not one object")),
    }
}

/// Reads a patch of the media type `media`, and returns what a strict decoder says of keys that are there twice.
///
/// # Errors
/// 400 for what is no JSON.
pub(super) fn parse_patch(media: &str, bytes: &[u8]) -> ApiResult<(Value, Vec<String>)> {
    let (patch, mut duplicates) = parse_json(bytes)?;
    if media == "application/json-patch+json" {
        duplicates = duplicates
            .iter()
            .map(|text| format!("json patch {text}"))
            .collect();
    }
    Ok((patch, duplicates))
}
