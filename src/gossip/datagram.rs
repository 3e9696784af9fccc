//! Sealing and opening of gossip datagrams with AES-256-GCM. Pure: bytes in, bytes out.
//!
//! Layout: `version 1 | key id 4 | sender 32 | epoch 16 | counter 8 | part 1 | sealed bytes | tag 16`, integers in
//! big endian; all that precedes the sealed bytes is associated data. Each sender draws an epoch at its start; the key of
//! (sender, epoch) is derived from the gossip key, and the nonce is the counter, so no nonce is ever used twice under
//! one key. A sliding window per (sender, epoch) drops what was received before.

use std::collections::HashMap;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};

const VERSION: u8 = 1;
const HEADER: usize = 1 + 4 + SENDER + EPOCH + 8 + 1;
const SENDER: usize = 32;
const EPOCH: usize = 16;
const TAG: usize = 16;
/// What UDP over IPv4 can carry: 65,535 - 20 (IP) - 8 (UDP).
pub(super) const DATAGRAM_LIMIT: usize = 65_507;
/// What one datagram can carry of a message. chitchat fills 65,507 bytes, so its greatest messages go in two.
const PART_LIMIT: usize = DATAGRAM_LIMIT - HEADER - TAG;
const MESSAGE_LIMIT: usize = 2 * PART_LIMIT;

/// Datagrams that may overtake one another without being dropped. 50 nodes send one another a few a second.
const WINDOW: u64 = 1024;
const WINDOW_WORDS: usize = (WINDOW / 64) as usize;
/// Starts of one sender that are remembered, so that datagrams of its last runs cannot be played again.
const EPOCHS_PER_SENDER: usize = 4;
/// Senders that are remembered, five times the greatest cluster. Only holders of the key get an entry.
const SENDERS: usize = 256;

/// How the parts of a message are marked.
const WHOLE: u8 = 0;
const FIRST_HALF: u8 = 1;
const SECOND_HALF: u8 = 2;

type SenderId = [u8; SENDER];
type EpochId = [u8; EPOCH];

/// The key that all datagrams' keys are derived from, with its public name.
#[derive(Clone)]
pub(super) struct GossipKey {
    id: [u8; 4],
    key: [u8; 32],
}

impl GossipKey {
    pub(super) fn new(key: [u8; 32]) -> Self {
        let digest = Sha256::new()
            .chain_update(b"podman-swarm gossip key id")
            .chain_update(key)
            .finalize();
        let mut id = [0; 4];
        id.copy_from_slice(&digest[..4]);
        Self { id, key }
    }

    fn cipher(&self, sender: &SenderId, epoch: &EpochId) -> Aes256Gcm {
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(Some(epoch), &self.key)
            .expand_multi_info(&[b"datagram v1", sender], &mut key)
            .expect("32 bytes are fewer than the 255 blocks that HKDF can give");
        Aes256Gcm::new(&Key::<Aes256Gcm>::from(key))
    }
}

fn nonce(counter: u64) -> Nonce<<Aes256Gcm as aes_gcm::aead::AeadCore>::NonceSize> {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    bytes.into()
}

/// A message that no two datagrams can carry.
#[derive(Debug, thiserror::Error)]
#[error("a message of {0} bytes is too large for gossip")]
pub(super) struct TooLarge(usize);

/// Seals this node's messages.
pub(super) struct Sealer {
    cipher: Aes256Gcm,
    /// Version, key id, sender and epoch.
    prefix: Vec<u8>,
    counter: u64,
}

impl Sealer {
    /// `epoch` must be random and new at every start.
    pub(super) fn new(key: &GossipKey, sender: SenderId, epoch: EpochId) -> Self {
        let mut prefix = vec![VERSION];
        prefix.extend(key.id);
        prefix.extend(sender);
        prefix.extend(epoch);
        Self {
            cipher: key.cipher(&sender, &epoch),
            prefix,
            counter: 0,
        }
    }

    /// Seals a message into one datagram, or two.
    pub(super) fn seal(&mut self, message: &[u8]) -> Result<Vec<Vec<u8>>, TooLarge> {
        if message.len() <= PART_LIMIT {
            return Ok(vec![self.seal_part(WHOLE, message)]);
        }
        if message.len() > MESSAGE_LIMIT {
            return Err(TooLarge(message.len()));
        }
        let (first, second) = message.split_at(PART_LIMIT);
        Ok(vec![
            self.seal_part(FIRST_HALF, first),
            self.seal_part(SECOND_HALF, second),
        ])
    }

    fn seal_part(&mut self, part: u8, bytes: &[u8]) -> Vec<u8> {
        // 2^64 datagrams are more than a lifetime of any process.
        self.counter += 1;
        let mut header = self.prefix.clone();
        header.extend(self.counter.to_be_bytes());
        header.push(part);
        let mut sealed = bytes.to_vec();
        self.cipher
            .encrypt_in_place(&nonce(self.counter), &header, &mut sealed)
            .expect("a datagram is far below the 64 GiB that GCM can seal");
        header.extend(sealed);
        header
    }
}

/// Opens others' datagrams.
pub(super) struct Opener {
    key: GossipKey,
    senders: HashMap<SenderId, Vec<Received>>,
    /// Counts what opens, to know which sender was silent longest.
    clock: u64,
}

/// What was received of one start of one sender.
struct Received {
    epoch: EpochId,
    cipher: Aes256Gcm,
    window: Window,
    /// A first half, and its counter: the second follows with the next one.
    half: Option<(u64, Vec<u8>)>,
    last_used: u64,
}

/// What opening a datagram came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    Message(Vec<u8>),
    /// A part of a message whose other part is missing.
    Partial,
    /// Not sealed under our key.
    Stranger,
    /// Received before, or too old to tell.
    Replayed,
}

impl Opener {
    pub(super) fn new(key: GossipKey) -> Self {
        Self {
            key,
            senders: HashMap::new(),
            clock: 0,
        }
    }

    /// Opens a datagram. Nothing is kept of one that does not open.
    pub(super) fn open(&mut self, datagram: &[u8]) -> Opened {
        let Some((header, sealed)) = datagram.split_at_checked(HEADER) else {
            return Opened::Stranger;
        };
        let (Some(sender), Some(epoch), Some(counter)) = (
            array::<SENDER>(header, 5),
            array::<EPOCH>(header, 5 + SENDER),
            array::<8>(header, 5 + SENDER + EPOCH).map(u64::from_be_bytes),
        ) else {
            return Opened::Stranger;
        };
        if header[0] != VERSION || header[1..5] != self.key.id {
            return Opened::Stranger;
        }
        let part = header[HEADER - 1];

        let known = self
            .senders
            .get_mut(&sender)
            .and_then(|epochs| epochs.iter_mut().find(|received| received.epoch == epoch));
        if known
            .as_ref()
            .is_some_and(|received| !received.window.is_new(counter))
        {
            return Opened::Replayed;
        }
        let mut message = sealed.to_vec();
        let mut fresh = None;
        let received = match known {
            Some(received) => received,
            None => fresh.insert(Received {
                epoch,
                cipher: self.key.cipher(&sender, &epoch),
                window: Window::default(),
                half: None,
                last_used: 0,
            }),
        };
        if received
            .cipher
            .decrypt_in_place(&nonce(counter), header, &mut message)
            .is_err()
        {
            return Opened::Stranger;
        }
        // From here on, the sender holds the key.
        self.clock += 1;
        received.last_used = self.clock;
        received.window.mark(counter);
        let opened = match part {
            WHOLE => Opened::Message(message),
            FIRST_HALF => {
                received.half = Some((counter, message));
                Opened::Partial
            }
            SECOND_HALF => match received.half.take() {
                Some((first, mut whole)) if first + 1 == counter => {
                    whole.extend(message);
                    Opened::Message(whole)
                }
                _ => Opened::Partial,
            },
            _ => Opened::Stranger,
        };
        if let Some(fresh) = fresh {
            self.remember(sender, fresh);
        }
        opened
    }

    fn remember(&mut self, sender: SenderId, received: Received) {
        if !self.senders.contains_key(&sender) && self.senders.len() >= SENDERS {
            let last_used =
                |epochs: &Vec<Received>| epochs.iter().map(|one| one.last_used).max().unwrap_or(0);
            let silent = self
                .senders
                .iter()
                .min_by_key(|(_, epochs)| last_used(epochs))
                .map(|(sender, _)| *sender);
            if let Some(silent) = silent {
                self.senders.remove(&silent);
            }
        }
        let epochs = self.senders.entry(sender).or_default();
        if epochs.len() >= EPOCHS_PER_SENDER
            && let Some(oldest) = (0..epochs.len()).min_by_key(|index| epochs[*index].last_used)
        {
            epochs.swap_remove(oldest);
        }
        epochs.push(received);
    }
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

/// Which of the newest [`WINDOW`] counters were received (RFC 6479: a ring of words, without shifting).
#[derive(Default)]
struct Window {
    newest: u64,
    words: [u64; WINDOW_WORDS],
}

impl Window {
    /// One word of the ring is being filled and cannot be relied on for old counters.
    const USABLE: u64 = WINDOW - 64;

    fn is_new(&self, counter: u64) -> bool {
        if counter > self.newest {
            return true;
        }
        self.newest - counter < Self::USABLE && self.words[Self::word(counter)] & Self::bit(counter) == 0
    }

    fn mark(&mut self, counter: u64) {
        if counter > self.newest {
            let (from, to) = (self.newest / 64, counter / 64);
            for word in (from + 1..=to).take(WINDOW_WORDS) {
                self.words[(word % WINDOW_WORDS as u64) as usize] = 0;
            }
            if to - from >= WINDOW_WORDS as u64 {
                self.words = [0; WINDOW_WORDS];
            }
            self.newest = counter;
        }
        self.words[Self::word(counter)] |= Self::bit(counter);
    }

    fn word(counter: u64) -> usize {
        (counter / 64 % WINDOW_WORDS as u64) as usize
    }

    fn bit(counter: u64) -> u64 {
        1 << (counter % 64)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const ALICE: SenderId = [1; SENDER];

    fn key() -> GossipKey {
        GossipKey::new([7; 32])
    }

    fn one(sealer: &mut Sealer, message: &[u8]) -> Vec<u8> {
        let mut datagrams = sealer.seal(message).unwrap();
        assert_eq!(datagrams.len(), 1);
        datagrams.remove(0)
    }

    #[test]
    fn messages_open_once_in_any_order() {
        let mut sealer = Sealer::new(&key(), ALICE, [1; EPOCH]);
        let mut opener = Opener::new(key());
        let first = one(&mut sealer, b"first");
        let second = one(&mut sealer, b"second");
        assert_eq!(opener.open(&second), Opened::Message(b"second".to_vec()));
        assert_eq!(opener.open(&first), Opened::Message(b"first".to_vec()));
        assert_eq!(opener.open(&first), Opened::Replayed);
        assert_eq!(opener.open(&second), Opened::Replayed);
    }

    #[test]
    fn a_change_of_any_byte_makes_a_stranger() {
        let mut sealer = Sealer::new(&key(), ALICE, [1; EPOCH]);
        let datagram = one(&mut sealer, b"hello");
        for index in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[index] ^= 1;
            let mut opener = Opener::new(key());
            assert_eq!(opener.open(&changed), Opened::Stranger, "byte {index}");
            assert!(opener.senders.is_empty(), "strangers leave nothing behind");
        }
        for length in 0..datagram.len() {
            assert_eq!(Opener::new(key()).open(&datagram[..length]), Opened::Stranger);
        }
        assert_eq!(
            Opener::new(GossipKey::new([8; 32])).open(&datagram),
            Opened::Stranger
        );
    }

    #[test]
    fn a_forged_counter_does_not_move_the_window() {
        let mut sealer = Sealer::new(&key(), ALICE, [1; EPOCH]);
        let mut opener = Opener::new(key());
        let first = one(&mut sealer, b"first");
        opener.open(&first);
        let mut forged = first.clone();
        forged[5 + SENDER + EPOCH] = 0xff;
        assert_eq!(opener.open(&forged), Opened::Stranger);
        let second = one(&mut sealer, b"second");
        assert_eq!(opener.open(&second), Opened::Message(b"second".to_vec()));
    }

    #[test]
    fn two_starts_of_one_sender_share_neither_key_nor_window() {
        let mut opener = Opener::new(key());
        let before = one(&mut Sealer::new(&key(), ALICE, [1; EPOCH]), b"same");
        let after = one(&mut Sealer::new(&key(), ALICE, [2; EPOCH]), b"same");
        assert_ne!(before[HEADER..], after[HEADER..]);
        assert_eq!(opener.open(&before), Opened::Message(b"same".to_vec()));
        assert_eq!(opener.open(&after), Opened::Message(b"same".to_vec()));
        assert_eq!(opener.open(&before), Opened::Replayed);
    }

    #[test]
    fn the_greatest_messages_go_in_two_parts() {
        let mut sealer = Sealer::new(&key(), ALICE, [1; EPOCH]);
        let mut opener = Opener::new(key());
        for size in [PART_LIMIT, PART_LIMIT + 1, DATAGRAM_LIMIT + 3, MESSAGE_LIMIT] {
            let message: Vec<u8> = (0..size).map(|index| index as u8).collect();
            let datagrams = sealer.seal(&message).unwrap();
            assert!(datagrams.iter().all(|datagram| datagram.len() <= DATAGRAM_LIMIT));
            let mut opened = Vec::new();
            for datagram in &datagrams {
                opened.push(opener.open(datagram));
            }
            assert_eq!(opened.pop(), Some(Opened::Message(message)));
            assert!(opened.iter().all(|part| *part == Opened::Partial));
        }
        assert!(sealer.seal(&vec![0; MESSAGE_LIMIT + 1]).is_err());

        let lost = sealer.seal(&vec![1; PART_LIMIT + 1]).unwrap();
        let other = sealer.seal(&vec![2; PART_LIMIT + 1]).unwrap();
        assert_eq!(opener.open(&lost[0]), Opened::Partial);
        assert_eq!(opener.open(&other[1]), Opened::Partial, "halves of two messages");
    }

    #[test]
    fn the_table_of_senders_is_bounded() {
        let mut opener = Opener::new(key());
        for index in 0..2 * SENDERS {
            let mut sender = [0; SENDER];
            sender[..8].copy_from_slice(&index.to_be_bytes());
            for epoch in 0..2 * EPOCHS_PER_SENDER {
                let datagram = one(&mut Sealer::new(&key(), sender, [epoch as u8; EPOCH]), b"");
                assert_eq!(opener.open(&datagram), Opened::Message(Vec::new()));
            }
        }
        assert_eq!(opener.senders.len(), SENDERS);
        assert!(
            opener
                .senders
                .values()
                .all(|epochs| epochs.len() == EPOCHS_PER_SENDER)
        );
    }

    proptest! {
        /// Against a model that remembers everything: nothing is taken twice, and what is recent is taken once.
        #[test]
        fn the_window_takes_each_counter_once(
            steps in prop::collection::vec((0u64..3000, any::<bool>()), 1..400)
        ) {
            let mut window = Window::default();
            let mut seen = HashSet::new();
            let mut base = 0;
            for (step, forward) in steps {
                let counter = if forward { base + step } else { base.saturating_sub(step) };
                base = base.max(counter);
                let new = window.is_new(counter);
                if new {
                    window.mark(counter);
                    prop_assert!(seen.insert(counter), "{counter} was taken twice");
                } else {
                    prop_assert!(
                        seen.contains(&counter) || counter + Window::USABLE <= window.newest,
                        "{counter} was refused"
                    );
                }
            }
        }
    }
}
