//! Deleting a Node: takes a member out of the cluster from afar.
//!
//! Never here: what that node does when it hears of it, see `agent::removal`.

use reconcilers::ports::Liveness;
use schemas::{Kind, ObjectKey};
use store::{Author, NodeId, Precondition, Store, View, WriteError};

use crate::api::state::ApiState;
use crate::api::status::{ApiError, ApiResult};
use crate::api::tokens::{node_token_name, revoke_tokens};

/// Returns the Member of a node that is named by its name or its id; None if there is none.
///
/// # Errors
/// Two members took the name on two sides of a partition: which one is meant must be said by id.
pub(super) fn member(state: &ApiState, key: &ObjectKey) -> ApiResult<Option<View>> {
    let mut named = state.store.list(Kind::Member, None).items;
    named.retain(|member| member.key.name == key.name || member.object.str_at("/spec/name") == key.name);
    match named.len() {
        0 | 1 => Ok(named.pop()),
        _ => {
            let ids: Vec<&str> = named.iter().map(|member| member.key.name.as_str()).collect();
            let why = format!(
                "{} nodes have this name: say which by its id ({})",
                ids.len(),
                ids.join(", ")
            );
            Err(ApiError::conflict(key, &why))
        }
    }
}

/// Refuses what would not do what a user expects: a node whose agent runs is to be asked itself, unless `force` says that
/// it is meant all the same; and the node that answers cannot tell of its own end.
///
/// # Errors
/// The removal is refused.
pub(super) fn check_removal(
    state: &ApiState,
    key: &ObjectKey,
    member: &View,
    force: bool,
) -> Result<(), ApiError> {
    let id = NodeId(member.key.name.clone());
    if id == state.node {
        return Err(ApiError::conflict(
            key,
            "this is the node that answers: run `podman-swarm-agent leave` on it, or ask another node to remove it",
        ));
    }
    let cluster = state.cluster.borrow();
    let liveness = cluster.nodes.get(&id).map(|node| node.liveness);
    if liveness == Some(Liveness::Alive) && !force {
        return Err(ApiError::conflict(
            key,
            "its agent is running: run `podman-swarm-agent leave` on it, or stop it first, or use `psctl node remove --force`",
        ));
    }
    Ok(())
}

/// Removes a member, and what the others keep for it.
///
/// # Errors
/// A removal cannot be stored; doing it again goes on where this ended.
pub(super) async fn remove_member(state: &ApiState, member: &View, author: Author) -> ApiResult<()> {
    let name = member.object.str_at("/spec/name");
    let members = state.store.list(Kind::Member, None).items;
    // Of two with one name the other stays, and what it has.
    if !members
        .iter()
        .any(|other| other.key != member.key && other.object.str_at("/spec/name") == name)
    {
        forget_node(&state.store, name, author.clone()).await?;
    }
    match state
        .store
        .remove(&member.key, &Precondition::default(), author)
        .await
    {
        Ok(_) | Err(WriteError::NotFound(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes what the cluster keeps for a node that goes: the API token that it made for people, and what users said of it
/// (cordoned, labels), which would be shown as a node that is none.
///
/// # Errors
/// A removal cannot be stored.
pub async fn forget_node(store: &Store, node_name: &str, author: Author) -> Result<(), WriteError> {
    revoke_tokens(store, &node_token_name(node_name), author.clone()).await?;
    let key = ObjectKey::cluster(Kind::Node, node_name);
    match store.remove(&key, &Precondition::default(), author).await {
        // Without a document there is only what is computed.
        Ok(_) | Err(WriteError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
