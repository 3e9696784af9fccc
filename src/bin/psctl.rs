//! `psctl`: the command line of Podman Swarm.

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    podman_swarm::cli::run().await
}
