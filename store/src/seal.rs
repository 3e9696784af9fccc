//! Sealing of records of confidential kinds (`schemas::KindRow::confidential`) with AES-256-GCM.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};

use crate::random::random;

const NONCE_BYTES: usize = 12;

/// A record that was sealed under another key, or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot be unsealed with this key")]
pub(crate) struct Unsealable;

/// Seals and unseals under one key. Nonces are random: 96 bits bear 2^32 records (NIST SP 800-38D).
#[derive(Clone)]
pub(crate) struct Seal {
    cipher: Aes256Gcm,
}

impl Seal {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self {
            cipher: Aes256Gcm::new(key.into()),
        }
    }

    /// Seals bytes to the place (`associated`) that they are kept at.
    pub(crate) fn seal(&self, associated: &[u8], plain: &[u8]) -> Result<Vec<u8>, Unsealable> {
        let nonce: [u8; NONCE_BYTES] = random();
        let payload = Payload {
            msg: plain,
            aad: associated,
        };
        let sealed = self
            .cipher
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|_| Unsealable)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    pub(crate) fn unseal(&self, associated: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unsealable> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(Unsealable)?;
        let payload = Payload {
            msg: sealed,
            aad: associated,
        };
        self.cipher
            .decrypt(&Nonce::from(*nonce), payload)
            .map_err(|_| Unsealable)
    }
}
