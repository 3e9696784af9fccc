//! What clients go on sending when they are answered early: it is read and dropped, to a limit, before they hear the answer.
//!
//! Most clients write all of a body before they read. Over HTTP/2, a stream that is closed before its body has ended is reset, and
//! curl then takes the whole answer for a failure.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::oneshot;

use super::content::MAX_MANIFEST_BYTES;
use crate::caller::Caller;

/// So much is read and dropped, and for so long. Whoever sends more may miss the answer.
const MAX_DROPPED_BYTES: usize = 2 * MAX_MANIFEST_BYTES;
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers when the request's body has been read, by its handler or here.
pub(crate) async fn drain(request: Request, next: Next) -> Response {
    // The body of a node that relays a session ends with the session, and it hears answers at any time.
    if matches!(request.extensions().get(), Some(Caller::Peer(_))) {
        return next.run(request).await;
    }
    // Who waits to be asked for a body sends none after an answer.
    let waits = request.headers().contains_key(header::EXPECT);
    let (back, mut unread) = oneshot::channel();
    let request = request.map(|body| {
        Body::new(Lent {
            body,
            was_read: false,
            back: Some(back),
        })
    });
    let response = next.run(request).await;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    if let Ok((body, was_read)) = unread.try_recv()
        && (was_read || !waits)
    {
        let _ = tokio::time::timeout(DROP_TIMEOUT, drop_rest(body)).await;
    }
    response
}

async fn drop_rest(mut body: Body) {
    let mut dropped = 0;
    while dropped < MAX_DROPPED_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        dropped += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// A body that comes back when its reader drops it, with whether any of it was read.
struct Lent {
    body: Body,
    was_read: bool,
    back: Option<oneshot::Sender<(Body, bool)>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.was_read = true;
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            // Nobody waits any more for what a handler goes on reading after its answer.
            let _ = back.send((std::mem::take(&mut self.body), self.was_read));
        }
    }
}
