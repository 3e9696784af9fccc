//! The data directory as a whole: whether this agent may use it, and what becomes of it when its node leaves.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tracing::warn;

use super::backups;
use crate::gossip;

/// In the directory of a node that has left its cluster, until all that it held is set aside.
const LEAVING: &str = "leaving";
/// Where that goes.
const LEFT: &str = "left";
/// Objects of a cluster, to be read with that cluster's keys alone.
const HELD: [&str; 3] = ["store", backups::FOLDER, "rescued"];

/// Makes the directory, for its owner alone, checks that it can be written, and takes it: it is this agent's for as long as
/// the answer lives.
///
/// # Errors
/// One sentence that names the flag, the directory and the remedy.
pub(super) fn take(directory: &Path) -> Result<File> {
    let problem = || {
        format!(
            "--data-dir: cannot write to {}; choose another with --data-dir",
            directory.display()
        )
    };
    fs::create_dir_all(directory).with_context(problem)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).with_context(problem)?;
    let probe = directory.join(".writable");
    fs::write(&probe, "").with_context(problem)?;
    fs::remove_file(&probe).with_context(problem)?;
    // The store has a lock of its own, but is opened late: after ports, Podman and credentials.
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join("lock"))
        .with_context(problem)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "--data-dir: {} is in use by another agent: stop that one, or choose another with --data-dir",
            directory.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(problem),
    }
}

/// Tells whether the directory holds objects of a cluster, but not which cluster's.
pub(super) fn is_orphaned(directory: &Path) -> bool {
    !gossip::has_identity(directory) && HELD.iter().any(|name| directory.join(name).exists())
}

/// Finishes a leave that was interrupted. To be called before a cluster is joined or made, which writes new keys.
///
/// # Errors
/// The keys that are there belong to objects that are there, and the node's identity is lost: nothing is touched.
pub(super) fn settle(directory: &Path) -> Result<()> {
    if directory.join(LEAVING).exists() {
        warn!("this node was interrupted while it left its cluster: what it held is set aside now");
        return set_aside(directory);
    }
    if is_orphaned(directory) {
        let directory = directory.display();
        bail!(
            "--data-dir: {directory} holds objects of a cluster, but no cluster.json that says which. Nothing was changed. Put that file back; or begin anew with podman-swarm-agent leave --data-dir={directory}, which moves all that is there, the keys too, to {directory}/{LEFT}"
        );
    }
    Ok(())
}

/// Notes that the node has left its cluster: from here on, [`settle`] finishes what is interrupted.
pub(super) fn begin_leave(directory: &Path) -> Result<()> {
    Ok(gossip::write_private_file(&directory.join(LEAVING), "")?)
}

/// Moves what belonged to the cluster into a folder of its own; a later start begins anew.
pub(super) fn set_aside(directory: &Path) -> Result<()> {
    // The keys as well: what is sealed under them may be nowhere else.
    let rest = ["gitops", "api.token", "admin.kubeconfig"];
    let names: Vec<&str> = HELD.into_iter().chain(rest).chain(gossip::IDENTITY).collect();
    let left = directory.join(LEFT);
    // A folder of an earlier leave makes room; one that this leave has begun to fill is gone on with.
    if names
        .iter()
        .any(|name| directory.join(name).exists() && left.join(name).exists())
    {
        fs::rename(&left, unused(&left)).with_context(|| format!("cannot move {}", left.display()))?;
    }
    fs::create_dir_all(&left).with_context(|| format!("cannot make {}", left.display()))?;
    for name in names {
        let from = directory.join(name);
        if from.exists() {
            fs::rename(&from, left.join(name)).with_context(|| format!("cannot move {}", from.display()))?;
        }
    }
    _ = fs::remove_dir_all(directory.join("pods"));
    File::open(directory)?.sync_all()?;
    match fs::remove_file(directory.join(LEAVING)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Names a folder that is not there yet: `left.1`, else `left.2` and so on.
fn unused(folder: &Path) -> PathBuf {
    let mut number: u32 = 1;
    loop {
        let name = folder.with_added_extension(number.to_string());
        if !name.exists() {
            return name;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_agent_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let taken = take(directory.path()).unwrap();
        let error = take(directory.path()).unwrap_err().to_string();
        for word in [
            "--data-dir",
            "another agent",
            "choose another",
            &directory.path().display().to_string(),
        ] {
            assert!(error.contains(word), "{error}");
        }
        drop(taken);
        take(directory.path()).unwrap();
    }
    fn put(directory: &Path, names: &[&str], content: &str) {
        for name in names {
            fs::write(directory.join(name), content).unwrap();
        }
    }

    fn content(directory: &Path) -> Vec<(String, String)> {
        let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
        let read = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap_or_default())
        };
        let mut content: Vec<_> = entries.map(read).collect();
        content.sort();
        content
    }

    #[test]
    fn keys_without_an_identity_are_never_replaced() {
        for held in HELD {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            settle(path).unwrap();
            put(path, &gossip::IDENTITY, "old");
            settle(path).unwrap();
            fs::create_dir(path.join(held)).unwrap();
            settle(path).unwrap();

            fs::remove_file(path.join("cluster.json")).unwrap();
            let before = content(path);
            let error = settle(path).unwrap_err().to_string();
            for word in ["--data-dir", "cluster.json", "leave --data-dir="] {
                assert!(error.contains(word), "{error}");
            }
            assert_eq!(content(path), before);

            // As it says.
            begin_leave(path).unwrap();
            set_aside(path).unwrap();
            assert_eq!(content(path).len(), 1, "{:?}", content(path));
            assert_eq!(content(&path.join(LEFT)), before);
            settle(path).unwrap();
        }
    }

    #[test]
    fn an_interrupted_leave_is_finished_and_destroys_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let count = 2 + gossip::IDENTITY.len();
        for (time, folders) in [("first", 1), ("second", 2), ("third", 3)] {
            put(path, &gossip::IDENTITY, time);
            for held in &HELD[..2] {
                fs::create_dir(path.join(held)).unwrap();
                put(&path.join(held), &["kept"], time);
            }
            // Killed when all but one file was moved.
            begin_leave(path).unwrap();
            set_aside(path).unwrap();
            begin_leave(path).unwrap();
            fs::rename(path.join("left/encryption.key"), path.join("encryption.key")).unwrap();
            settle(path).unwrap();
            assert_eq!(content(path).len(), folders);
            assert_eq!(content(&path.join(LEFT)).len(), count);
        }
        for (folder, time) in [("left.1", "first"), ("left.2", "second"), ("left", "third")] {
            for name in ["store/kept", "backups/kept", "encryption.key", "cluster.json"] {
                let kept = fs::read_to_string(path.join(folder).join(name)).unwrap();
                assert_eq!(kept, time, "{folder}/{name}");
            }
        }
    }
}
