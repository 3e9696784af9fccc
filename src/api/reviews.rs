//! Who a client is, and what it may do: what `kubectl auth whoami` and `kubectl auth can-i` ask. Nothing is stored.
//!
//! Every token may do everything, as the bearer of Kubernetes' `cluster-admin`; so may anybody where `--auth-required` is off.

use axum::extract::Request;
use http::StatusCode;
use serde_json::{Value, json};

use super::content::{self, MAX_OBJECT_BYTES, accepted, expect_type, parse_value, read_body};
use super::discovery::Unkept;
use super::state::user_of;
use super::status::{ApiError, ApiResult, Cause};
use schemas::Scope;

pub(crate) const REVIEWS: &[Unkept] = &[
    review(
        "authentication.k8s.io",
        "SelfSubjectReview",
        ["selfsubjectreviews", "selfsubjectreview"],
    ),
    review(
        "authorization.k8s.io",
        "SelfSubjectAccessReview",
        ["selfsubjectaccessreviews", "selfsubjectaccessreview"],
    ),
    review(
        "authorization.k8s.io",
        "SelfSubjectRulesReview",
        ["selfsubjectrulesreviews", "selfsubjectrulesreview"],
    ),
];

const fn review(group: &'static str, kind: &'static str, [plural, singular]: [&'static str; 2]) -> Unkept {
    Unkept {
        group,
        version: "v1",
        plural,
        singular,
        kind,
        scope: Scope::Cluster,
        verbs: &["create"],
    }
}

/// `POST /apis/authentication.k8s.io/v1/selfsubjectreviews`
pub(crate) async fn whoami(request: Request) -> ApiResult {
    answer(request, &REVIEWS[0], |_, user| {
        Ok(json!({"userInfo": user_info(user)}))
    })
    .await
}

/// `POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews`
pub(crate) async fn access(request: Request) -> ApiResult {
    answer(request, &REVIEWS[1], |review, _| {
        let is_set = |field: &str| review["spec"].get(field).is_some_and(|value| !value.is_null());
        if is_set("resourceAttributes") != is_set("nonResourceAttributes") {
            return Ok(json!({"allowed": true, "reason": "whoever is let in may do everything"}));
        }
        let rule =
            "Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified";
        let cause = Cause {
            reason: "FieldValueInvalid".to_owned(),
            message: rule.to_owned(),
            field: "spec.resourceAttributes".to_owned(),
        };
        let qualified = format!("{}.{}", REVIEWS[1].kind, REVIEWS[1].group);
        Err(ApiError::unprocessable(&qualified, "", vec![cause]))
    })
    .await
}

/// `POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews`
pub(crate) async fn rules(request: Request) -> ApiResult {
    answer(request, &REVIEWS[2], |review, _| {
        if review["spec"]["namespace"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        Ok(json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        }))
    })
    .await
}

/// Reads what a user asks, and answers it with a status.
async fn answer(
    request: Request,
    review: &Unkept,
    status: impl Fn(&Value, &str) -> ApiResult<Value>,
) -> ApiResult {
    let (parts, body) = request.into_parts();
    let accepted = accepted(&parts.headers)?;
    let asked = parse_value(&parts.headers, &read_body(body, MAX_OBJECT_BYTES).await?)?;
    let api_version = format!("{}/{}", review.group, review.version);
    expect_type(&asked, &api_version, review.kind)?;
    let answered = json!({
        "status": status(&asked, &user_of(&parts.extensions, &parts.headers))?,
        "apiVersion": api_version,
        "kind": review.kind,
        "metadata": {"creationTimestamp": null},
        "spec": asked.get("spec").cloned().unwrap_or_else(|| json!({})),
    });
    Ok(content::answer(StatusCode::CREATED, accepted.format, &answered))
}

/// A user as Kubernetes names one. Nobody in particular asks where nobody has to prove anything.
fn user_info(user: &str) -> Value {
    if user.is_empty() {
        return json!({"username": "system:anonymous", "groups": ["system:masters", "system:unauthenticated"]});
    }
    json!({"username": user, "groups": ["system:masters", "system:authenticated"]})
}
