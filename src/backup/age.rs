//! The age v1 format (<https://age-encryption.org/v1>) for one X25519 recipient, so that the standard tools `age` and
//! `rage` open what we seal, and we open what they seal for our key.
//!
//! Only what backups need: no passphrases, no ASCII armour, no plugins ([decision 6](../../docs/decisions/0006-backups.md)).

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD as BASE64};
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use hkdf::Hkdf;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

const VERSION_LINE: &str = "age-encryption.org/v1";
const X25519: &str = "X25519";
const X25519_INFO: &[u8] = b"age-encryption.org/v1/X25519";
/// How identities and recipients begin as text.
const IDENTITY_PREFIX: Hrp = Hrp::parse_unchecked("age-secret-key-");
const RECIPIENT_PREFIX: Hrp = Hrp::parse_unchecked("age");
/// Ours has one stanza of 200 bytes; who seals for a hundred recipients besides us still fits.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// Columns of a stanza's body; a line that is shorter ends it.
const BODY_COLUMNS: usize = 64;
const FILE_KEY_BYTES: usize = 16;
const PAYLOAD_NONCE_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// Plain bytes of a chunk of the payload.
const CHUNK_BYTES: usize = 64 << 10;

/// The key of a cluster's backups: seals for its own public half, and opens.
#[derive(Clone)]
pub struct Identity {
    secret: StaticSecret,
}

/// Text that is no key for backups.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "neither an age identity (AGE-SECRET-KEY-1...) nor the content of an encryption.key (32 bytes in base64)"
)]
pub struct BadIdentity;

/// Why a sealed file cannot be opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgeError {
    #[error("it is sealed, but its header cannot be read: {0}")]
    Header(&'static str),
    #[error(
        "it is sealed for another key than that of this cluster, or than the one that was given (psctl restore --encryption-key FILE)"
    )]
    OtherKey,
    #[error("it was cut off or changed: chunk {0} of what is sealed does not prove itself")]
    Damaged(u64),
}

/// Tells whether bytes begin as an age file does.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(VERSION_LINE.as_bytes())
}

impl Identity {
    /// Derives the key from a cluster's encryption key, under a label of its own beside those in `gossip::credentials`.
    pub fn of_cluster_key(cluster_key: &[u8; 32]) -> Self {
        let secret = derive(cluster_key, b"podman-swarm", b"backup v1");
        Self {
            secret: secret.into(),
        }
    }

    /// Returns the secret as `age -i` reads it.
    pub fn to_text(&self) -> String {
        encode(IDENTITY_PREFIX, self.secret.as_bytes()).to_ascii_uppercase()
    }

    /// Returns the public half as `age -r` reads it.
    pub fn recipient(&self) -> String {
        encode(RECIPIENT_PREFIX, PublicKey::from(&self.secret).as_bytes())
    }

    /// Opens a sealed file.
    ///
    /// # Errors
    /// It is sealed for another key, or not whole; nothing of it is returned then.
    pub fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, AgeError> {
        let header = Header::parse(sealed)?;
        let own = PublicKey::from(&self.secret);
        let file_key = header
            .shares
            .iter()
            .find_map(|(share, body)| unwrap(&self.secret, &own, share, body))
            .ok_or(AgeError::OtherKey)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &derive(&file_key, &[], b"header"));
        hmac::verify(&key, header.authenticated, &header.mac)
            .map_err(|_| AgeError::Header("it was changed"))?;
        open_payload(&file_key, header.payload)
    }

    /// Seals bytes for this identity.
    ///
    /// # Errors
    /// Of the key, never of these bytes.
    pub fn seal(&self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut sealer = Sealer::new(self, Vec::new())?;
        sealer.write_all(plain)?;
        sealer.finish()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.recipient())
    }
}

impl FromStr for Identity {
    type Err = BadIdentity;

    /// Reads an identity of age (a file of them may have comments), or the content of an `encryption.key`.
    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with('#'));
        let line = line.ok_or(BadIdentity)?;
        if let Some(cluster_key) = STANDARD.decode(line).ok().and_then(|key| key.try_into().ok()) {
            return Ok(Self::of_cluster_key(&cluster_key));
        }
        let parsed = CheckedHrpstring::new::<Bech32>(line).map_err(|_| BadIdentity)?;
        if parsed.hrp() != IDENTITY_PREFIX {
            return Err(BadIdentity);
        }
        let secret: Vec<u8> = parsed.byte_iter().collect();
        let secret: [u8; 32] = secret.try_into().map_err(|_| BadIdentity)?;
        Ok(Self {
            secret: secret.into(),
        })
    }
}

fn encode(prefix: Hrp, bytes: &[u8; 32]) -> String {
    bech32::encode::<Bech32>(prefix, bytes).expect("32 bytes are shorter than the longest text of bech32")
}

fn derive(secret: &[u8], salt: &[u8], info: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(salt), secret)
        .expand(info, &mut key)
        .expect("32 bytes are fewer than the 255 blocks that HKDF can give");
    key
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("this cipher's keys have 32 bytes"))
}

// ---------------------------------------------------------------- header

/// The key that a file key is wrapped under; None for a share of low order, with which anybody knew it.
fn wrapping_key(
    secret: &StaticSecret,
    other: &PublicKey,
    share: &PublicKey,
    own: &PublicKey,
) -> Option<LessSafeKey> {
    let shared = secret.diffie_hellman(other);
    let salt = [share.as_bytes().as_slice(), own.as_bytes()].concat();
    let key = derive(shared.as_bytes(), &salt, X25519_INFO);
    shared.was_contributory().then(|| cipher(&key))
}

fn unwrap(
    secret: &StaticSecret,
    own: &PublicKey,
    share: &PublicKey,
    body: &[u8],
) -> Option<[u8; FILE_KEY_BYTES]> {
    let key = wrapping_key(secret, share, share, own)?;
    let mut body = body.to_vec();
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let plain = key.open_in_place(nonce, Aad::empty(), &mut body).ok()?;
    (*plain).try_into().ok()
}

/// Writes the header for a fresh file key.
fn header_for(own: &PublicKey, file_key: &[u8; FILE_KEY_BYTES]) -> io::Result<String> {
    let ephemeral = StaticSecret::from(rand::random::<[u8; 32]>());
    let share = PublicKey::from(&ephemeral);
    let broken = || io::Error::other("the key for backups is of low order");
    let key = wrapping_key(&ephemeral, own, &share, own).ok_or_else(broken)?;
    let mut body = file_key.to_vec();
    // Each of these keys seals once.
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    key.seal_in_place_append_tag(nonce, Aad::empty(), &mut body)
        .map_err(|_| io::Error::other("sealing failed"))?;
    // 32 bytes are 43 columns: one short line.
    let mut header = format!(
        "{VERSION_LINE}\n-> {X25519} {}\n{}\n---",
        BASE64.encode(share.as_bytes()),
        BASE64.encode(&body)
    );
    let mac_key = hmac::Key::new(hmac::HMAC_SHA256, &derive(file_key, &[], b"header"));
    let mac = hmac::sign(&mac_key, header.as_bytes());
    header.push_str(&format!(" {}\n", BASE64.encode(mac)));
    Ok(header)
}

struct Header<'a> {
    /// The X25519 stanzas: the sender's share, and the wrapped file key.
    shares: Vec<(PublicKey, Vec<u8>)>,
    /// All up to and with the three dashes.
    authenticated: &'a [u8],
    mac: Vec<u8>,
    payload: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(sealed: &'a [u8]) -> Result<Self, AgeError> {
        let window = &sealed[..sealed.len().min(MAX_HEADER_BYTES)];
        let mut lines = Lines { bytes: window, at: 0 };
        if lines.next()? != VERSION_LINE {
            return Err(AgeError::Header("it is of another version of age"));
        }
        let mut shares = Vec::new();
        loop {
            let start = lines.at;
            let line = lines.next()?;
            if let Some(mac) = line.strip_prefix("--- ") {
                let mac = BASE64
                    .decode(mac)
                    .map_err(|_| AgeError::Header("its MAC is no base64"))?;
                return Ok(Self {
                    shares,
                    authenticated: &sealed[..start + "---".len()],
                    mac,
                    payload: &sealed[lines.at..],
                });
            }
            let arguments = line
                .strip_prefix("-> ")
                .ok_or(AgeError::Header("a line is out of place"))?;
            let body = lines.stanza_body()?;
            // Others may be there, also of kinds that nobody knows.
            if let Some(share) = arguments
                .strip_prefix(X25519)
                .and_then(|rest| rest.strip_prefix(' '))
            {
                let share: Option<[u8; 32]> =
                    BASE64.decode(share).ok().and_then(|share| share.try_into().ok());
                let share = share.ok_or(AgeError::Header("a share is not 32 bytes"))?;
                shares.push((share.into(), body));
            }
        }
    }
}

struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a str, AgeError> {
        let rest = &self.bytes[self.at..];
        let end = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or(AgeError::Header("it was cut off, or is too long"))?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| AgeError::Header("it is no text"))
    }

    fn stanza_body(&mut self) -> Result<Vec<u8>, AgeError> {
        let mut text = String::new();
        loop {
            let line = self.next()?;
            text.push_str(line);
            if line.len() < BODY_COLUMNS {
                return BASE64
                    .decode(text)
                    .map_err(|_| AgeError::Header("a stanza is no base64"));
            }
        }
    }
}

// ---------------------------------------------------------------- payload

/// The nonce of a chunk: its number in 11 bytes, and whether it is the last one.
fn chunk_nonce(number: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&number.to_be_bytes());
    nonce[11] = u8::from(is_last);
    Nonce::assume_unique_for_key(nonce)
}

fn open_payload(file_key: &[u8; FILE_KEY_BYTES], payload: &[u8]) -> Result<Vec<u8>, AgeError> {
    let (nonce, chunks) = payload
        .split_first_chunk::<PAYLOAD_NONCE_BYTES>()
        .ok_or(AgeError::Damaged(0))?;
    let key = cipher(&derive(file_key, nonce, b"payload"));
    let mut plain = Vec::with_capacity(chunks.len());
    let mut rest = chunks;
    let mut number = 0;
    loop {
        let (chunk, after) = rest.split_at(rest.len().min(CHUNK_BYTES + TAG_BYTES));
        let is_last = after.is_empty();
        let begin = plain.len();
        plain.extend_from_slice(chunk);
        let opened = key
            .open_in_place(chunk_nonce(number, is_last), Aad::empty(), &mut plain[begin..])
            .map_err(|_| AgeError::Damaged(number))?
            .len();
        // Only an empty file ends in an empty chunk.
        if is_last && opened == 0 && number > 0 {
            return Err(AgeError::Damaged(number));
        }
        plain.truncate(begin + opened);
        if is_last {
            return Ok(plain);
        }
        (rest, number) = (after, number + 1);
    }
}

/// Seals what is written to it. Nothing opens before [`Sealer::finish`].
pub(super) struct Sealer<W> {
    out: W,
    key: LessSafeKey,
    chunk: Vec<u8>,
    number: u64,
}

impl<W: Write> Sealer<W> {
    /// Writes the header.
    pub(super) fn new(identity: &Identity, mut out: W) -> io::Result<Self> {
        let file_key: [u8; FILE_KEY_BYTES] = rand::random();
        let nonce: [u8; PAYLOAD_NONCE_BYTES] = rand::random();
        out.write_all(header_for(&PublicKey::from(&identity.secret), &file_key)?.as_bytes())?;
        out.write_all(&nonce)?;
        Ok(Self {
            out,
            key: cipher(&derive(&file_key, &nonce, b"payload")),
            chunk: Vec::with_capacity(CHUNK_BYTES + TAG_BYTES),
            number: 0,
        })
    }

    /// Writes the last chunk.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.flush_chunk(true)?;
        Ok(self.out)
    }

    fn flush_chunk(&mut self, is_last: bool) -> io::Result<()> {
        let nonce = chunk_nonce(self.number, is_last);
        self.key
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut self.chunk)
            .map_err(|_| io::Error::other("sealing failed"))?;
        self.out.write_all(&self.chunk)?;
        self.chunk.clear();
        self.number += 1;
        Ok(())
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits until it is known not to be the last.
        if self.chunk.len() == CHUNK_BYTES && !bytes.is_empty() {
            self.flush_chunk(false)?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn identity() -> Identity {
        Identity::of_cluster_key(&[7; 32])
    }

    fn sealed(plain: &[u8]) -> Vec<u8> {
        identity().seal(plain).unwrap()
    }

    fn plain(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at * 7) as u8).collect()
    }

    #[test]
    fn what_is_sealed_opens_at_every_edge_of_a_chunk() {
        for bytes in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            3 * CHUNK_BYTES,
        ] {
            assert!(
                identity().open(&sealed(&plain(bytes))).unwrap() == plain(bytes),
                "{bytes}"
            );
        }
    }

    #[test]
    fn a_file_that_was_cut_off_changed_or_is_not_ours_does_not_open() {
        let whole = sealed(&plain(2 * CHUNK_BYTES + 100));
        for cut in [whole.len() - 1, whole.len() - 100 - TAG_BYTES, 400, 150, 30] {
            assert!(identity().open(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in [40, 90, 140, 200, 300, CHUNK_BYTES + 500, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(identity().open(&changed).is_err(), "changed at {at}");
        }
        let other = Identity::of_cluster_key(&[8; 32]);
        assert_eq!(other.open(&whole), Err(AgeError::OtherKey));
        assert!(matches!(
            identity().open(b"age-encryption.org/v2\n"),
            Err(AgeError::Header(_))
        ));
    }

    #[test]
    fn a_key_is_read_in_both_forms() {
        let key = STANDARD.encode([7; 32]);
        for text in [
            format!("{key}\n"),
            identity().to_text(),
            format!("# backup\n{}\n", identity().to_text()),
        ] {
            assert_eq!(
                text.parse::<Identity>().unwrap().recipient(),
                identity().recipient()
            );
        }
        for bad in ["", "AGE-SECRET-KEY-1", "secret", &identity().recipient()] {
            assert_eq!(bad.parse::<Identity>().unwrap_err(), BadIdentity, "{bad}");
        }
    }

    /// Runs `age`; None where it is not installed.
    fn age(arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
        let child = Command::new("age")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                eprintln!("skipped: age does not run here: {error}");
                return None;
            }
        };
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writing = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        writing.join().unwrap().unwrap();
        assert!(output.status.success());
        Some(output.stdout)
    }

    #[test]
    fn the_standard_tool_opens_ours_and_we_open_its() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key.txt");
        std::fs::write(&key, identity().to_text()).unwrap();
        for bytes in [0, 10, CHUNK_BYTES, 2 * CHUNK_BYTES + 1] {
            let Some(opened) = age(&["-d", "-i", key.to_str().unwrap()], &sealed(&plain(bytes))) else {
                return;
            };
            assert!(opened == plain(bytes), "{bytes}");
            let theirs = age(&["-r", &identity().recipient()], &plain(bytes)).unwrap();
            assert!(identity().open(&theirs).unwrap() == plain(bytes), "{bytes}");
        }
    }
}
