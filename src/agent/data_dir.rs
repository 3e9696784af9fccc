//! The data directory as a whole: whether this agent may use it, and what becomes of it when its node leaves.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

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

/// Moves what belonged to the cluster into a folder of its own; a later start begins anew.
pub(super) fn set_aside(directory: &Path) -> Result<()> {
    let aside = directory.join("left");
    _ = fs::remove_dir_all(&aside);
    fs::create_dir(&aside)?;
    for name in [
        "store",
        "backups",
        "rescued",
        "gitops",
        "api.token",
        "admin.kubeconfig",
    ] {
        let from = directory.join(name);
        if from.exists() {
            fs::rename(&from, aside.join(name)).with_context(|| format!("cannot move {}", from.display()))?;
        }
    }
    _ = fs::remove_dir_all(directory.join("pods"));
    Ok(())
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
}
