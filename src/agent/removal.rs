//! What an agent does whose node was removed from the cluster by others: it ends what it ran for it, keeps what it held, and
//! does not start again before a person has said so (`podman-swarm-agent leave`).
//!
//! Never here: how it hears of it, see `gossip::membership`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tracing::error;

use super::data_dir;
use crate::gossip;
use crate::network::Network;
use crate::podman::Podman;

/// In the data directory of a node that was removed.
const MARK: &str = "removed";

/// The node of this data directory was removed. The agent ends with an exit code of its own: no restart mends that.
#[derive(Debug, thiserror::Error)]
#[error(
    "this node was removed from its cluster. What it held is kept in {}. To use the machine again: podman-swarm-agent leave --data-dir={}, then start the agent with --join and --join-token",
    data_dir.join("store").display(), data_dir.display()
)]
pub struct Removed {
    data_dir: PathBuf,
}

impl Removed {
    pub(super) fn of(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
        }
    }

    /// Refuses a start on the directory of a node that was removed: it would run pods that run elsewhere.
    ///
    /// # Errors
    /// The node was removed.
    pub(super) fn check(data_dir: &Path) -> Result<(), Self> {
        if was_removed(data_dir) {
            Err(Self::of(data_dir))
        } else {
            Ok(())
        }
    }

    /// Notes that this is done, as the last step: an agent that was killed before does it again.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub(super) fn mark(self) -> Result<Self> {
        error!(
            store = %self.data_dir.join("store").display(),
            "removed from the cluster: what this node acknowledged and no other had yet is in its store alone"
        );
        gossip::write_private_file(&self.data_dir.join(MARK), &format!("{self}\n"))?;
        Ok(self)
    }
}

/// Tells whether the directory is set aside without its agent, which would refuse to start: its node was removed, or it is
/// not known which that is.
pub fn needs_no_agent_to_leave(data_dir: &Path) -> bool {
    was_removed(data_dir) || data_dir::is_orphaned(data_dir)
}

/// Tells whether an agent has found the node of this directory removed.
fn was_removed(data_dir: &Path) -> bool {
    data_dir.join(MARK).exists()
}

/// Removes all containers and the network of the pods of this node.
pub(super) async fn clean_up(podman: &Podman, network: &Network) {
    if let Err(error) = podman.remove_all().await {
        error!(%error, "containers of this node are left: remove those with the label podman-swarm.cluster by hand");
    }
    if let Err(error) = network.remove_all().await {
        error!(%error, "a part of the pod network is left: a restart of the machine removes it");
    }
}

/// Sets aside what a node held that [needs no agent for that](needs_no_agent_to_leave), so that the next start begins
/// anew. Its agent must not run.
///
/// # Errors
/// An agent runs on the directory, or a file cannot be moved.
pub fn leave_without_agent(data_dir: &Path) -> Result<()> {
    let _lock = data_dir::take(data_dir)?;
    data_dir::begin_leave(data_dir)?;
    data_dir::set_aside(data_dir)?;
    if was_removed(data_dir) {
        std::fs::remove_file(data_dir.join(MARK))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_removed_node_begins_anew_only_when_told_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::create_dir(path.join("store")).unwrap();
        std::fs::write(path.join("store/kept"), "acknowledged").unwrap();
        std::fs::write(path.join("cluster.json"), "{}").unwrap();
        Removed::check(path).unwrap();
        Removed::of(path).mark().unwrap();
        let refusal = Removed::check(path).unwrap_err().to_string();
        for word in [
            "removed",
            "leave --data-dir=",
            "--join",
            &path.display().to_string(),
        ] {
            assert!(refusal.contains(word), "{refusal}");
        }

        let running = data_dir::take(path).unwrap();
        assert!(leave_without_agent(path).is_err(), "its agent runs");
        drop(running);
        assert!(needs_no_agent_to_leave(path));
        leave_without_agent(path).unwrap();
        assert!(!needs_no_agent_to_leave(path));
        Removed::check(path).unwrap();
        assert!(!gossip::has_identity(path));
        let kept = std::fs::read_to_string(path.join("left/store/kept")).unwrap();
        assert_eq!(kept, "acknowledged");
    }
}
