//! Volumes of pods: which directories and files must be there, which mounts lead to them, and the few effects on disk.
//!
//! Only below `<data-dir>/pods/<uid>` is anything ever removed; paths of the host are made where the manifest asks, and
//! never taken away.

use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Volume};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

use super::env::expand;
use super::spec::{ConfigError, DesiredPod, NodeSettings, Surroundings};
use crate::ports::Mount;

/// Something that must be there before a pod's containers are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    /// An empty directory of the pod, writable for every user as in Kubernetes.
    EmptyDirectory(PathBuf),
    /// A path of the host and its `type`.
    Host(PathBuf, HostType),
}

/// `hostPath.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostType {
    /// `""`: no check; made as a directory if absent, since Podman refuses a mount of nothing.
    Any,
    Directory,
    DirectoryOrCreate,
    File,
    FileOrCreate,
}

/// A `subPath`: what of a volume a mount leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubPath {
    /// Which of the container's mounts: its place in the list.
    pub mount: usize,
    pub volume: PathBuf,
    /// Relative to the volume, without `..`.
    pub path: PathBuf,
}

/// The pod's own directory on this node.
pub(super) fn pod_directory(data_dir: &Path, uid: &str) -> PathBuf {
    data_dir.join("pods").join(uid)
}

fn empty_directory(node: &NodeSettings, uid: &str, volume: &str) -> PathBuf {
    pod_directory(&node.data_dir, uid).join("volumes").join(volume)
}

/// Lists what the volumes of a pod need on disk.
pub(super) fn ground(pod: &DesiredPod, node: &NodeSettings) -> Vec<Ground> {
    let volumes = pod.spec().volumes.iter().flatten();
    volumes
        .filter_map(|volume| {
            if volume.empty_dir.is_some() {
                return Some(Ground::EmptyDirectory(empty_directory(
                    node,
                    &pod.uid,
                    &volume.name,
                )));
            }
            let host = volume.host_path.as_ref()?;
            let kind = match host.type_.as_deref() {
                Some("Directory") => HostType::Directory,
                Some("DirectoryOrCreate") => HostType::DirectoryOrCreate,
                Some("File" | "Socket" | "CharDevice" | "BlockDevice") => HostType::File,
                Some("FileOrCreate") => HostType::FileOrCreate,
                _ => HostType::Any,
            };
            Some(Ground::Host(PathBuf::from(&host.path), kind))
        })
        .collect()
}

/// Names the volumes whose `emptyDir.medium` is Memory: they are on disk all the same, which the user is told.
pub(super) fn memory_volumes(pod: &DesiredPod) -> Vec<&str> {
    let in_memory = |volume: &&Volume| {
        let medium = volume
            .empty_dir
            .as_ref()
            .and_then(|source| source.medium.as_deref());
        medium.is_some_and(|medium| medium == "Memory" || medium.starts_with("HugePages"))
    };
    let volumes = pod.spec().volumes.iter().flatten();
    volumes
        .filter(in_memory)
        .map(|volume| volume.name.as_str())
        .collect()
}

/// Computes the mounts of a container, and the `subPath`s among them, whose sources [`locate`] must make sure of.
pub(super) fn mounts(
    surroundings: &Surroundings<'_>,
    container: &Container,
    environment: &[(String, String)],
) -> Result<(Vec<Mount>, Vec<SubPath>), ConfigError> {
    let Surroundings { pod, node, .. } = surroundings;
    let mut mounts = Vec::new();
    let mut sub_paths = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = pod
            .spec()
            .volumes
            .iter()
            .flatten()
            .find(|volume| volume.name == mount.name)
            .ok_or_else(|| ConfigError(format!("volume \"{}\" not found", mount.name)))?;
        let mut source = if volume.empty_dir.is_some() {
            empty_directory(node, &pod.uid, &volume.name)
        } else if let Some(host) = &volume.host_path {
            PathBuf::from(&host.path)
        } else {
            let text = format!("volume \"{}\" is of a kind that is not supported yet", mount.name);
            return Err(ConfigError(text));
        };
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => path.clone(),
            (_, Some(expression)) => expand(expression, environment),
            _ => String::new(),
        };
        if !sub_path.is_empty() {
            let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
            if !Path::new(&sub_path).components().all(plain) {
                return Err(ConfigError(format!(
                    "subPath \"{sub_path}\" leads out of its volume"
                )));
            }
            sub_paths.push(SubPath {
                mount: mounts.len(),
                volume: source.clone(),
                path: PathBuf::from(&sub_path),
            });
            source.push(sub_path);
        }
        mounts.push(Mount {
            source,
            target: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only == Some(true),
        });
    }
    Ok((mounts, sub_paths))
}

/// Makes what is absent. Blocks on the disk.
pub(super) fn make(ground: &[Ground]) -> Result<(), Error> {
    for item in ground {
        match item {
            Ground::EmptyDirectory(path) => {
                std::fs::create_dir_all(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
            }
            Ground::Host(path, kind) => make_on_host(path, *kind)?,
        }
    }
    Ok(())
}

fn make_on_host(path: &Path, kind: HostType) -> Result<(), Error> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let wrong = |expected: &str| {
        let text = format!("hostPath type check failed: {} is not {expected}", path.display());
        Err(Error::new(ErrorKind::InvalidInput, text))
    };
    match (kind, metadata) {
        (HostType::Any, Some(_)) => Ok(()),
        (HostType::Any | HostType::DirectoryOrCreate, None) => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path),
        (HostType::Directory | HostType::DirectoryOrCreate, Some(metadata)) if metadata.is_dir() => Ok(()),
        (HostType::Directory | HostType::DirectoryOrCreate, _) => wrong("a directory"),
        (HostType::File | HostType::FileOrCreate, Some(metadata)) if !metadata.is_dir() => Ok(()),
        (HostType::FileOrCreate, None) => std::fs::File::create_new(path).map(drop),
        (HostType::File | HostType::FileOrCreate, _) => wrong("a file"),
    }
}

/// Finds the place on the host that a `subPath` leads to, making directories that are absent. Blocks on the disk.
///
/// What is in a volume is written by containers: symbolic links are followed as long as they stay within it. Between this
/// and the runtime's mount a container that has the volume already may still swap a directory for a link.
pub(super) fn locate(sub_path: &SubPath) -> Result<PathBuf, Error> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, &sub_path.volume, directory, Mode::empty())?;
    let within = |path: &Path| {
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside)
    };
    let mut walked = PathBuf::new();
    let mut found = within(Path::new("."))?;
    for part in sub_path.path.components() {
        walked.push(part);
        let next = match within(&walked) {
            Err(Errno::NOENT) => match mkdirat(&found, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => within(&walked),
                Err(error) => Err(error),
            },
            other => other,
        };
        found = next.map_err(|error| match error {
            Errno::XDEV => Error::other(format!("{} leads out of its volume", walked.display())),
            other => Error::new(
                Error::from(other).kind(),
                format!("{}: {}", walked.display(), Error::from(other)),
            ),
        })?;
    }
    std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// Removes the pod's own directory. Absent: Ok. Blocks on the disk.
pub(super) fn remove(directory: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_sub_path_does_not_leave_its_volume() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        let volume = base.join("volume");
        std::fs::create_dir_all(volume.join("real")).unwrap();
        std::fs::create_dir(base.join("outside")).unwrap();
        std::fs::write(volume.join("file"), "").unwrap();
        for (link, target) in [
            ("root", "/"),
            ("up", "../outside"),
            ("new", "../made"),
            ("inside", "real"),
            ("loop", "loop"),
        ] {
            symlink(target, volume.join(link)).unwrap();
        }
        let check = |path: &str, expected: Option<&str>| {
            let sub_path = SubPath {
                mount: 0,
                volume: volume.clone(),
                path: path.into(),
            };
            let found = locate(&sub_path).ok();
            assert_eq!(found, expected.map(|expected| volume.join(expected)), "{path}");
        };
        check("a/./b", Some("a/b"));
        check("a/b", Some("a/b"));
        check("file", Some("file"));
        check("inside/c", Some("real/c"));
        for path in ["root", "root/x", "up", "up/x", "new", "new/x", "loop", "file/x"] {
            check(path, None);
        }
        let entries = |of: &Path| std::fs::read_dir(of).unwrap().count();
        assert_eq!(
            (entries(&base), entries(&base.join("outside"))),
            (2, 0),
            "nothing is made outside"
        );
    }
}
