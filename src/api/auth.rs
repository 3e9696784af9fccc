//! Who asks: bearer tokens against the hashed ones in the store, and the kubeconfig that carries one.
//!
//! Runs before anything else of a request is read (promise P8). Never here: what a caller may do.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, StatusCode, header};
use schemas::{Kind, Object, ObjectKey, hex, time};
use serde_json::json;
use sha2::{Digest, Sha256};
use store::Store;
use subtle::ConstantTimeEq;

use super::serve::Proven;
use super::state::ApiState;
use super::status::ApiError;
use crate::caller::Caller;

/// A relaying node names the user whom it has checked in this header. Believed from peers alone.
pub const RELAYED_USER: &str = "x-podman-swarm-user";

/// Text before the id of every API token, so that secret scanners can know it.
const PREFIX: &str = "pst-";
/// Paths that answer without a token.
const PUBLIC: [&str; 9] = [
    "/api/v1/health",
    "/livez",
    "/livez/ping",
    "/readyz",
    "/readyz/ping",
    "/healthz",
    "/healthz/ping",
    "/version",
    "/version/",
];

/// Refuses requests that prove nothing, and notes on the others who makes them.
pub(crate) async fn check(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    if matches!(request.extensions().get::<Caller>(), Some(Caller::Peer(_))) {
        return next.run(request).await;
    }
    let caller = match bearer(request.headers()) {
        Some(secret) => authenticate(&state.store, secret, state.clock.unix_seconds()),
        None => None,
    };
    if (caller.is_some() || !state.auth_required)
        && let Some(Proven(proven)) = request.extensions().get()
    {
        proven.cancel();
    }
    let public = !state.auth_required || PUBLIC.contains(&request.uri().path());
    let Some(caller) = caller.or(public.then_some(Caller::Anonymous)) else {
        return ApiError::unauthorized().into_response();
    };
    if let Some(refused) = impersonation(request.headers(), &caller) {
        return refused.into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Refuses who asks to be somebody else, as Kubernetes does with those who may not: every token may do everything, so that
/// nothing would be gained, and who looks whether another may not would be told wrong.
fn impersonation(headers: &HeaderMap, caller: &Caller) -> Option<ApiError> {
    let named = |header: &str, resource| Some((resource, headers.get(header)?));
    let (resource, name) = named("impersonate-user", "users")
        .or_else(|| named("impersonate-group", "groups"))
        .or_else(|| named("impersonate-uid", "uids"))
        .or_else(|| {
            let mut headers = headers.iter();
            let (_, value) = headers.find(|(header, _)| header.as_str().starts_with("impersonate-"))?;
            Some(("userextras", value))
        })?;
    let name = String::from_utf8_lossy(name.as_bytes());
    let user = match caller {
        Caller::Token(user) => user,
        Caller::Peer(_) | Caller::Anonymous => "system:anonymous",
    };
    let message = format!(
        "{resource} \"{name}\" is forbidden: User \"{user}\" cannot impersonate resource \"{resource}\" in API group \"\" at the \
         cluster scope: this version of Podman Swarm has no impersonation, and every token may do everything"
    );
    let mut refused = ApiError::new(StatusCode::FORBIDDEN, "Forbidden", message);
    refused.details.name = name.into_owned();
    refused.details.kind = resource.to_owned();
    Some(refused)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
}

/// Finds the token that a secret belongs to. The id in it is public; the whole is compared by hash, in constant time.
pub(crate) fn authenticate(store: &Store, secret: &str, now_unix_seconds: i64) -> Option<Caller> {
    let token = store
        .get(&ObjectKey::cluster(Kind::ApiToken, token_id(secret)?))?
        .object;
    let hash = hash(secret);
    if !bool::from(hash.as_bytes().ct_eq(token.str_at("/spec/hash").as_bytes())) {
        return None;
    }
    let expires = token.str_at("/spec/expiresAt");
    // An expiry that cannot be read has passed.
    if !expires.is_empty() && time::from_rfc3339(expires).is_none_or(|at| at <= now_unix_seconds) {
        return None;
    }
    Some(Caller::Token(token.str_at("/spec/name").to_owned()))
}

/// Tells whether a secret would be accepted now.
pub fn knows_token(store: &Store, secret: &str, now_unix_seconds: i64) -> bool {
    authenticate(store, secret, now_unix_seconds).is_some()
}

/// Returns the id in a secret of the form `pst-<id>.<random>`.
pub(crate) fn token_id(secret: &str) -> Option<&str> {
    let (id, _) = secret.strip_prefix(PREFIX)?.split_once('.')?;
    Some(id)
}

fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

/// Makes a token for a user: the object to store, and the secret, which exists nowhere else.
/// `expires_unix_seconds`: None for never.
pub fn create_token(name: &str, expires_unix_seconds: Option<i64>) -> (Object, String) {
    let id = hex(&rand::random::<[u8; 8]>());
    let secret = format!(
        "{PREFIX}{id}.{}",
        URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
    );
    let mut object = Object::new(&ObjectKey::cluster(Kind::ApiToken, id));
    object.set(&["spec"], json!({"name": name, "hash": hash(&secret)}));
    if let Some(at) = expires_unix_seconds {
        object.set(&["spec", "expiresAt"], time::to_rfc3339(at));
    }
    (object, secret)
}

/// Writes a kubeconfig: `server` is a URL, `ca_pem` the certificate authority that the server's certificate is from.
pub fn admin_kubeconfig(server: &str, ca_pem: &str, token: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "podman-swarm",
            "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(ca_pem)},
        }],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{
            "name": "podman-swarm",
            "context": {"cluster": "podman-swarm", "user": "admin", "namespace": "default"},
        }],
        "current-context": "podman-swarm",
        "preferences": {},
    });
    serde_yaml::to_string(&config).unwrap_or_else(|_| config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_stored_hashed_and_never_plain() {
        let (object, secret) = create_token("ci", Some(1_000));
        assert!(!serde_json::to_string(&object).unwrap().contains(&secret));
        assert_eq!(object.str_at("/spec/hash"), hash(&secret));
        assert_eq!(token_id(&secret), Some(object.name()));
        assert_eq!(object.str_at("/spec/expiresAt"), "1970-01-01T00:16:40Z");
        assert_ne!(create_token("ci", None).1, secret);
    }

    #[test]
    fn bearer_takes_the_scheme_in_any_case_and_no_other() {
        let check = |value: &str, expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            assert_eq!(bearer(&headers), expected, "{value}");
        };
        check("Bearer abc", Some("abc"));
        check("bearer abc", Some("abc"));
        check("Basic abc", None);
        check("abc", None);
    }
}
