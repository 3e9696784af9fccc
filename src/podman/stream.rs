//! Streams that Podman sends: the frames of logs and of exec, and events.
//!
//! Not through `podman-api`: its frame decoder panics at a byte that it does not know and allocates whatever length a frame claims,
//! and its streams borrow the client.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use http::Method;
use reconcilers::ports::labels;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::socket::{CallError, Socket, escape, within};

/// Pod uids that wait for a reader. Beyond it the reading from Podman waits, which has a buffer of its own.
const EVENTS_QUEUED_MAX: usize = 256;

/// One event is a line of JSON with the container's labels: Podman's limit on those is far below this.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// First and longest pause between attempts to reach the events stream again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Podman sends the head of an events stream at once.
const EVENTS_HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Takes the payload out of Docker's framed streams: a byte for the stream, three of nothing, four for the length, then the
/// payload. Holds no more than a header, whatever length a frame claims.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: BytesMut,
    stream: u8,
    remaining: usize,
}

impl Frames {
    /// Returns the payload in this piece of the stream, which may begin and end anywhere.
    ///
    /// # Errors
    /// As [`Frames::parts`].
    pub(super) fn payload(&mut self, piece: Bytes) -> Result<Bytes, CallError> {
        let mut parts = self.parts(piece)?;
        Ok(match parts.len() {
            0 => Bytes::new(),
            1 => parts.swap_remove(0).1,
            _ => {
                let parts: Vec<Bytes> = parts.into_iter().map(|(_, part)| part).collect();
                parts.concat().into()
            }
        })
    }

    /// [`Frames::payload`], each part with the number of its stream: 0 and 1 are stdout, 2 is stderr.
    ///
    /// # Errors
    /// A header that names no stream: this is not a framed stream, or we lost step.
    pub(super) fn parts(&mut self, mut piece: Bytes) -> Result<Vec<(u8, Bytes)>, CallError> {
        let mut parts = Vec::new();
        while !piece.is_empty() {
            if self.remaining == 0 {
                let missing = 8 - self.header.len();
                self.header
                    .extend_from_slice(&piece.split_to(missing.min(piece.len())));
                if self.header.len() < 8 {
                    break;
                }
                self.stream = self.header[0];
                if self.stream > 2 {
                    return Err(CallError::Unavailable(format!(
                        "Podman sent a frame of an unknown stream ({})",
                        self.stream
                    )));
                }
                self.header.advance(4);
                self.remaining = self.header.get_u32() as usize;
                self.header.clear();
            } else {
                let part = piece.split_to(self.remaining.min(piece.len()));
                self.remaining -= part.len();
                parts.push((self.stream, part));
            }
        }
        Ok(parts)
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "Action", default)]
    action: String,
    #[serde(rename = "Actor", default)]
    actor: Actor,
}

#[derive(Deserialize, Default)]
struct Actor {
    #[serde(rename = "Attributes", default)]
    attributes: HashMap<String, String>,
}

impl Event {
    /// The pod to look at, if this event says anything about a container's state.
    fn pod_uid(mut self) -> Option<String> {
        // `died` is when the exit is known, `cleanup` when its mounts are gone; Podman 5 also says `exited`.
        matches!(
            self.action.as_str(),
            "start"
                | "died"
                | "die"
                | "exited"
                | "cleanup"
                | "remove"
                | "oom"
                | "pause"
                | "unpause"
                | "restart"
        )
        .then(|| self.actor.attributes.remove(labels::POD_UID))?
    }
}

/// Yields the uid of each pod of the cluster whose containers changed, reconnecting for ever; an empty uid whenever something may
/// have been missed. Ends when dropped.
pub(super) fn events(socket: Socket, cluster: String) -> BoxStream<'static, String> {
    let (sender, receiver) = mpsc::channel(EVENTS_QUEUED_MAX);
    tokio::spawn(async move {
        let mut pause = RETRY_MIN;
        // The reader may go away while nothing happens: then the connection to Podman goes too.
        let closed = sender.clone();
        tokio::select! {
            () = closed.closed() => {}
            () = async {
                loop {
                    match follow(&socket, &cluster, &sender).await {
                        Ok(()) => pause = RETRY_MIN,
                        Err(error) => tracing::warn!(%error, "Podman's events broke off; will reconnect"),
                    }
                    if sender.is_closed() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            } => {}
        }
    });
    stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|uid| (uid, receiver))
    })
    .boxed()
}

/// One connection's worth of events. `Ok`: it worked, until Podman ended it.
async fn follow(socket: &Socket, cluster: &str, sender: &mpsc::Sender<String>) -> Result<(), CallError> {
    let filters = json!({
        "type": ["container"],
        "label": [format!("{}={cluster}", labels::CLUSTER)],
    });
    let target = format!("/events?stream=true&filters={}", escape(&filters.to_string()));
    let mut body = within(EVENTS_HEAD_LIMIT, socket.stream(Method::GET, &target, None)).await?;
    // From here on nothing is missed; whatever happened before has to be looked for.
    if sender.send(String::new()).await.is_err() {
        return Ok(());
    }
    let mut buffer = BytesMut::new();
    while let Some(piece) = body.next().await {
        buffer.extend_from_slice(&piece?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            let uid = match serde_json::from_slice::<Event>(&line) {
                Ok(event) => event.pod_uid(),
                // Not understood: look at everything rather than miss it.
                Err(_) if line.trim_ascii().is_empty() => None,
                Err(_) => Some(String::new()),
            };
            if let Some(uid) = uid
                && sender.send(uid).await.is_err()
            {
                return Ok(());
            }
        }
        if buffer.len() > EVENT_BYTES_MAX {
            return Err(CallError::Unavailable(format!(
                "an event of more than {EVENT_BYTES_MAX} bytes"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![stream, 0, 0, 0];
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn frames_may_be_cut_anywhere() {
        let wire = [
            frame(1, b"out\n"),
            frame(2, b""),
            frame(2, b"err\n"),
            frame(1, b"x"),
        ]
        .concat();
        for size in 1..=wire.len() {
            let mut frames = Frames::default();
            let read: Vec<u8> = wire
                .chunks(size)
                .flat_map(|piece| frames.payload(Bytes::copy_from_slice(piece)).unwrap())
                .collect();
            assert_eq!(read, b"out\nerr\nx", "in pieces of {size}");
        }
    }

    #[test]
    fn an_unframed_stream_is_an_error() {
        let mut frames = Frames::default();
        assert!(frames.payload(Bytes::from_static(b"plain text")).is_err());
    }

    #[test]
    fn a_frame_of_four_gigabytes_takes_no_memory() {
        let mut frames = Frames::default();
        let head = Bytes::from_static(&[1, 0, 0, 0, 255, 255, 255, 255, b'a']);
        assert_eq!(frames.payload(head).unwrap(), "a");
        assert_eq!(frames.payload(Bytes::from_static(b"bc")).unwrap(), "bc");
    }

    #[test]
    fn events_name_the_pod_when_its_state_changed() {
        let event = |action: &str| -> Option<String> {
            let text = json!({"Type": "container", "Action": action, "Actor": {"ID": "c",
                "Attributes": {labels::POD_UID: "u1", "image": "i"}}});
            serde_json::from_value::<Event>(text).unwrap().pod_uid()
        };
        assert_eq!(event("died").as_deref(), Some("u1"));
        assert_eq!(event("start").as_deref(), Some("u1"));
        assert_eq!(event("exec"), None);
        assert_eq!(event("create"), None);
    }
}
