//! Who makes a request of the API: set once, where the connection or the token was checked.

use store::NodeId;

/// The authenticated author of a request, carried as a request extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody proved anything (or authentication is off).
    Anonymous,
    /// The bearer of an API token with this name.
    Token(String),
    /// Another node, by its certificate; it relays for a caller that it has checked itself.
    Peer(NodeId),
}
