//! Sending an API request on to another node, over the peer connection.

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};
use store::NodeId;

/// A request that could not be delivered to a peer.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("node {0} is not known")]
    Unknown(NodeId),
    #[error("node {node} does not answer: {message}")]
    Unreachable { node: NodeId, message: String },
}

/// Carries HTTP requests to the API of another node, which sees them as [`crate::caller::Caller::Peer`].
/// Bodies stream in both directions; dropping the response cancels it at the other end.
#[async_trait]
pub trait Relay: Send + Sync {
    async fn send(&self, node: &NodeId, request: Request<Body>) -> Result<Response<Body>, RelayError>;
}
