//! What `fuzz/fuzz_targets/datagrams.rs` tries, and a test that replays its corpus. Never in what ships.

use arbitrary::{Result, Unstructured};
use chitchat::{ChitchatMessage, Deserializable, Serializable};

use super::datagram::{DATAGRAM_LIMIT, GossipKey, Opened, Opener, Sealer};

const KEY: [u8; 32] = [7; 32];
/// Datagrams of one input, more than a window's words.
const STEPS: usize = 64;

/// Opens datagrams: anybody's bytes, and what holders of the key send, as it is, changed, again, or out of order.
pub(super) fn datagrams(input: &[u8]) {
    let mut source = Unstructured::new(input);
    // What runs out of bytes was tried up to there.
    let _ = try_datagrams(&mut source);
}

fn try_datagrams(source: &mut Unstructured<'_>) -> Result<()> {
    let key = GossipKey::new(KEY);
    let mut opener = Opener::new(key.clone());
    let mut sealers = Vec::new();
    for sender in 0..3 {
        sealers.push(Sealer::new(&key, [sender / 2; 32], [sender; 16]));
    }
    // Sealed datagrams with their plaintext; None, if it has two parts.
    let mut sealed: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
    let mut opened = Vec::new();
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        match source.int_in_range(0..=9_u8)? {
            0 => {
                let datagram: Vec<u8> = source.arbitrary()?;
                assert_eq!(opener.open(&datagram), Opened::Stranger, "sealed by nobody");
            }
            1..=3 => {
                let plain: Vec<u8> = source.arbitrary()?;
                let sealer = source.choose_index(sealers.len())?;
                let datagrams = sealers[sealer].seal(&plain).expect("a short message");
                assert_eq!(datagrams.len(), 1);
                sealed.extend(
                    datagrams
                        .into_iter()
                        .map(|datagram| (datagram, Some(plain.clone()))),
                );
            }
            4 => {
                let sealer = source.choose_index(sealers.len())?;
                let bytes = source.int_in_range(0..=2 * DATAGRAM_LIMIT + 1)?;
                let message = vec![source.arbitrary()?; bytes];
                let datagrams = sealers[sealer].seal(&message).unwrap_or_default();
                assert!(datagrams.iter().all(|datagram| datagram.len() <= DATAGRAM_LIMIT));
                let plain = (datagrams.len() == 1).then_some(message);
                sealed.extend(datagrams.into_iter().map(|datagram| (datagram, plain.clone())));
            }
            5 => {
                // The parts of a message that chitchat could send.
                let message = [&[0x53, 0xb0, 0][..], source.arbitrary::<&[u8]>()?].concat();
                let sealer = source.choose_index(sealers.len())?;
                let datagrams = sealers[sealer].seal(&message).expect("a short message");
                sealed.extend(
                    datagrams
                        .into_iter()
                        .map(|datagram| (datagram, Some(message.clone()))),
                );
            }
            6 if !sealed.is_empty() => {
                let (datagram, _) = source.choose(&sealed)?;
                let mut changed = datagram.clone();
                let at = source.choose_index(changed.len())?;
                changed[at] ^= source.int_in_range(1..=255_u8)?;
                let outcome = opener.open(&changed);
                assert!(
                    matches!(outcome, Opened::Stranger | Opened::Replayed),
                    "{outcome:?}"
                );
            }
            _ if !sealed.is_empty() => {
                let at = source.choose_index(sealed.len())?;
                let (datagram, plain) = &sealed[at];
                match (opener.open(datagram), plain) {
                    (Opened::Message(message), Some(plain)) => {
                        assert_eq!(message, *plain);
                        assert!(!opened.contains(&at), "taken twice");
                        opened.push(at);
                        parse(&message);
                    }
                    (Opened::Message(message), None) => assert!(message.len() > DATAGRAM_LIMIT / 2),
                    (Opened::Partial, None) | (Opened::Replayed, _) => {}
                    (outcome, _) => panic!("sealed under the key: {outcome:?}"),
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the transport does with what opens, and that it can be said again.
fn parse(message: &[u8]) {
    let mut rest = message;
    if let Ok(parsed) = ChitchatMessage::deserialize(&mut rest)
        && !matches!(
            parsed,
            ChitchatMessage::Ack { .. } | ChitchatMessage::SynAck { .. }
        )
    {
        let mut again = Vec::new();
        parsed.serialize(&mut again);
        assert_eq!(
            ChitchatMessage::deserialize(&mut again.as_slice()).ok(),
            Some(parsed)
        );
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_datagrams_is_opened() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let mut inputs = 0;
        for of in ["corpus", "regressions"] {
            for entry in std::fs::read_dir(folder.join(of).join("datagrams"))
                .into_iter()
                .flatten()
            {
                let path = entry.unwrap().path();
                eprintln!("{}", path.display());
                super::datagrams(&std::fs::read(path).unwrap());
                inputs += 1;
            }
        }
        assert!(inputs > 0, "no corpus");
    }
}
