//! The files of the data directory that people and their tools use: `api.token` and `admin.kubeconfig`.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use store::{Author, Store};

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
    let saved = std::fs::read_to_string(&path)
        .ok()
        .map(|text| text.trim().to_owned());
    let token = match saved.filter(|token| api::knows_token(store, token, unix_seconds)) {
        Some(token) => token,
        None => {
            let (object, secret) = api::create_token(&format!("node-{}", config.node_name), None);
            let author = Author {
                manager: "agent".into(),
                user: String::new(),
                unix_seconds,
            };
            store
                .create(object, author)
                .await
                .context("cannot store the API token")?;
            secret
        }
    };
    write_private_file(&path, &format!("{token}\n"))?;
    let server = format!(
        "https://{}",
        SocketAddr::new(config.advertise, config.flags.api_addr.port())
    );
    let kubeconfig = api::admin_kubeconfig(&server, &credentials.authority_pem(), &token);
    write_private_file(&config.data_dir.join("admin.kubeconfig"), &kubeconfig)?;
    Ok(())
}
