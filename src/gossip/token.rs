//! The join token: `PSWTKN-1-<digest of the cluster CA>-<id>.<secret>`.
//!
//! The digest lets the joiner check whom it talks to before it shows the secret. The cluster keeps the secret hashed.

use std::fmt;
use std::str::FromStr;

use rand::RngExt;
use schemas::{Kind, Object, ObjectKey, hex};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const PREFIX: &str = "PSWTKN-1-";
/// Hex digits of a SHA-256 digest, and of a 256-bit secret.
const HEX_256: usize = 64;
/// Hex digits of a token's id: 40 bits tell the tokens of one cluster apart.
const ID_DIGITS: usize = 10;

/// What a node needs to be admitted. The text form (`Display`) holds the secret; `Debug` does not.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Hex SHA-256 of the cluster's CA certificate (DER).
    pub(super) authority_digest: String,
    /// Name of the [`Kind::JoinToken`] object.
    pub(super) id: String,
    pub(super) secret: String,
}

/// A text that is not a join token. It is not repeated, for it may be most of one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a join token reads PSWTKN-1-<64 hex digits>-<id>.<secret>; the file join.token on every node holds one"
)]
pub struct ParseTokenError;

impl JoinToken {
    /// Draws a new token for the cluster whose CA has this digest.
    pub fn generate(authority_digest: &str) -> Self {
        let secret: [u8; 32] = rand::rng().random();
        let id: [u8; ID_DIGITS / 2] = rand::rng().random();
        Self {
            authority_digest: authority_digest.to_owned(),
            id: hex(&id),
            secret: hex(&secret),
        }
    }

    /// The part that is shown to the cluster once the CA is checked.
    pub(super) fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(ParseTokenError)?;
        let (authority_digest, bearer) = rest.split_once('-').ok_or(ParseTokenError)?;
        let (id, secret) = parse_bearer(bearer).ok_or(ParseTokenError)?;
        if authority_digest.len() != HEX_256 || !is_hex(authority_digest) {
            return Err(ParseTokenError);
        }
        Ok(Self {
            authority_digest: authority_digest.to_owned(),
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}.{}", self.authority_digest, self.id, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

/// Splits what a joiner shows into id and secret, if it has their form.
pub(super) fn parse_bearer(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.split_once('.')?;
    let fits =
        !id.is_empty() && id.len() <= HEX_256 && is_hex(id) && secret.len() == HEX_256 && is_hex(secret);
    fits.then_some((id, secret))
}

/// Makes the object that lets the cluster check this token. `expires_unix_seconds` and `max_uses`: None is without end.
pub fn join_token_object(
    token: &JoinToken,
    expires_unix_seconds: Option<i64>,
    max_uses: Option<i64>,
) -> Object {
    let mut object = Object::new(&ObjectKey::cluster(Kind::JoinToken, &token.id));
    object.set(&["spec", "secretHash"], hash(&token.secret));
    if let Some(expires) = expires_unix_seconds {
        object.set(&["spec", "expiresUnixSeconds"], expires);
    }
    if let Some(max_uses) = max_uses {
        object.set(&["spec", "maxUses"], max_uses);
    }
    object
}

/// What a token's object says about a secret that was shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// `counted`: this use is to be added to `spec.uses`.
    Valid {
        counted: bool,
    },
    Wrong,
    Expired,
    UsedUp,
}

/// Judges a secret. The secret is compared first, in constant time, so that the rest is told to holders alone.
pub(super) fn judge(object: &Object, secret: &str, unix_seconds: i64) -> Verdict {
    let stored = object.str_at("/spec/secretHash");
    if !bool::from(stored.as_bytes().ct_eq(hash(secret).as_bytes())) {
        return Verdict::Wrong;
    }
    if object
        .i64_at("/spec/expiresUnixSeconds")
        .is_some_and(|expires| unix_seconds >= expires)
    {
        return Verdict::Expired;
    }
    match object.i64_at("/spec/maxUses") {
        Some(max) if object.i64_at("/spec/uses").unwrap_or(0) >= max => Verdict::UsedUp,
        Some(_) => Verdict::Valid { counted: true },
        None => Verdict::Valid { counted: false },
    }
}

fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_their_text_form_and_hide_in_debug() {
        let token = JoinToken::generate(&"ab".repeat(32));
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert_eq!(format!(" {token}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
        let text = token.to_string();
        for bad in [
            "",
            "PSWTKN-1-",
            &text[1..],
            &text[..text.len() - 1],
            &text.replace('.', "-"),
        ] {
            assert_eq!(bad.parse::<JoinToken>(), Err(ParseTokenError), "{bad}");
        }
    }

    #[test]
    fn tokens_are_judged_by_secret_then_expiry_then_uses() {
        let token = JoinToken::generate(&"ab".repeat(32));
        let other = JoinToken::generate(&"ab".repeat(32));
        let check = |object: &Object, secret: &str| judge(object, secret, 1_000);

        let endless = join_token_object(&token, None, None);
        assert_eq!(check(&endless, &token.secret), Verdict::Valid { counted: false });
        assert_eq!(check(&endless, &other.secret), Verdict::Wrong);
        assert_eq!(check(&Object::default(), &token.secret), Verdict::Wrong);

        let expired = join_token_object(&token, Some(1_000), None);
        assert_eq!(check(&expired, &token.secret), Verdict::Expired);
        assert_eq!(check(&expired, &other.secret), Verdict::Wrong);

        let mut counted = join_token_object(&token, Some(1_001), Some(1));
        assert_eq!(check(&counted, &token.secret), Verdict::Valid { counted: true });
        counted.set(&["spec", "uses"], 1);
        assert_eq!(check(&counted, &token.secret), Verdict::UsedUp);
    }
}
