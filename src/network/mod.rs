//! The pod network of a node whose agent is root: a bridge, a network namespace per pod, routes and rules of our own.
//!
//! Never here: which node has which range, which pod gets which redirect (reconcilers); containers (`podman` joins the
//! namespace by its path). Interfaces, routes and rules that are not ours are never changed; all of ours can be told by their
//! names: bridge `psw0`, namespaces `psw-<pod uid>`, nftables table `podman_swarm`, routes of protocol 112.
//!
//! Nothing is kept on disk: the kernel holds the state, and a restarted agent reads it back. Why not netavark:
//! docs/decisions/0002-pod-network-without-netavark.md. Next: `pods` for the port, `plan` for the pure part, `kernel` for the effects.

mod kernel;
mod plan;
mod pods;
#[cfg(test)]
mod tests;

pub use pods::Network;
