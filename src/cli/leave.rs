//! `podman-swarm-agent leave`: asks the agent of this machine to take its node out of the cluster.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use http::Method;

use super::client::{Client, ClientError};
use super::settings::{Settings, SettingsError};

/// Containers are stopped and peers are told; that takes seconds.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
enum LeaveError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the agent did not finish within {} s; its log says why", LEAVE_TIMEOUT.as_secs())]
    Slow,
}

/// Asks, and waits until the node has left.
pub async fn leave(data_dir: &Path) -> ExitCode {
    match ask(data_dir).await {
        Ok(()) => {
            print_left(data_dir);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            if !matches!(error, LeaveError::Slow) {
                eprintln!(
                    "hint: the agent must be running with --data-dir={} to leave",
                    data_dir.display()
                );
            }
            ExitCode::FAILURE
        }
    }
}

/// Says that this machine has no node of the cluster any more.
pub fn print_left(data_dir: &Path) {
    println!(
        "the node has left its cluster; what it held is in {}",
        data_dir.join("left").display()
    );
}

async fn ask(data_dir: &Path) -> Result<(), LeaveError> {
    let client = Client::new(Settings::of_kubeconfig(&data_dir.join("admin.kubeconfig"))?)?;
    client
        .send(Method::POST, "/api/v1/leave", "application/json", None)
        .await?;
    let start = Instant::now();
    // The last thing that the agent does is to set these aside.
    while data_dir.join("store").exists() || data_dir.join("cluster.json").exists() {
        if start.elapsed() > LEAVE_TIMEOUT {
            return Err(LeaveError::Slow);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}
