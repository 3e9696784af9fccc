//! The files of the data directory that people and their tools use: `api.token` and `admin.kubeconfig`.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use store::{Author, Store, Via};

use crate::api;
use crate::config::Config;
use crate::gossip::{Credentials, write_private_file};

/// Writes both, with a token that the cluster knows: the one of the last start, unless somebody revoked it.
///
/// # Errors
/// A file cannot be written, or the token not be stored.
pub(super) async fn write(
    config: &Config,
    credentials: &Credentials,
    store: &Store,
    unix_seconds: i64,
) -> Result<()> {
    let path = config.data_dir.join("api.token");
    let token = token(&path, &config.node_name, store, unix_seconds).await?;
    write_private_file(&path, &format!("{token}\n"))?;
    let server = format!(
        "https://{}",
        SocketAddr::new(config.advertise, config.flags.api_addr.port())
    );
    let kubeconfig = api::admin_kubeconfig(&server, &credentials.authority_pem(), &token);
    write_private_file(&config.data_dir.join("admin.kubeconfig"), &kubeconfig)?;
    Ok(())
}

/// Returns the token of the file if the cluster knows it, else a new one, in place of those that this node made before.
async fn token(path: &Path, node_name: &str, store: &Store, unix_seconds: i64) -> Result<String> {
    if let Ok(text) = std::fs::read_to_string(path)
        && api::knows_token(store, text.trim(), unix_seconds)
    {
        return Ok(text.trim().to_owned());
    }
    api::revoke_tokens(store, &api::node_token_name(node_name), author(unix_seconds))
        .await
        .context("cannot revoke the node's API token")?;
    let (object, secret) = api::create_token(&api::node_token_name(node_name), None);
    store
        .create(object, author(unix_seconds))
        .await
        .context("cannot store the API token")?;
    Ok(secret)
}

/// Takes away what the cluster keeps for this node, as it leaves: this token, and what users said of the node.
///
/// # Errors
/// The removal cannot be stored.
pub(super) async fn forget(node_name: &str, store: &Store, unix_seconds: i64) -> Result<()> {
    api::forget_node(store, node_name, author(unix_seconds))
        .await
        .context("cannot take away what the cluster keeps for this node")
}

fn author(unix_seconds: i64) -> Author {
    Author {
        manager: "agent".into(),
        user: String::new(),
        via: Via::Controller,
        unix_seconds,
    }
}

#[cfg(test)]
mod tests {
    use store::{NodeId, OpenOptions};

    use super::*;

    #[tokio::test]
    async fn a_node_has_one_token_and_takes_it_along_when_it_leaves() {
        let directory = tempfile::tempdir().unwrap();
        let options = OpenOptions {
            cluster_id: "test".into(),
            node: NodeId("a".repeat(64)),
            seal_key: [7; 32],
        };
        let store = Store::open(&directory.path().join("store"), options).unwrap();
        let path = directory.path().join("api.token");
        let first = token(&path, "n1", &store, 1).await.unwrap();
        let other = token(&path, "n2", &store, 1).await.unwrap();
        std::fs::write(&path, format!("{first}\n")).unwrap();
        assert_eq!(token(&path, "n1", &store, 2).await.unwrap(), first);

        std::fs::remove_file(&path).unwrap();
        let second = token(&path, "n1", &store, 3).await.unwrap();
        assert!(!api::knows_token(&store, &first, 3), "replaced");
        assert!(api::knows_token(&store, &second, 3));

        forget("n1", &store, 4).await.unwrap();
        assert!(!api::knows_token(&store, &second, 4));
        assert!(api::knows_token(&store, &other, 4));
    }
}
