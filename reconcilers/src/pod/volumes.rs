//! Volumes of pods: which directories and files must be there, which mounts lead to them, and the few effects on disk.
//!
//! Only below `<data-dir>/pods/<uid>` is anything ever removed; paths of the host are made where the manifest asks, and
//! never taken away.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Volume};

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

/// Computes the mounts of a container, and the `subPath` directories to be made before.
pub(super) fn mounts(
    surroundings: &Surroundings<'_>,
    container: &Container,
    environment: &[(String, String)],
) -> Result<(Vec<Mount>, Vec<PathBuf>), ConfigError> {
    let Surroundings { pod, node, .. } = surroundings;
    let mut mounts = Vec::new();
    let mut directories = Vec::new();
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
            source.push(sub_path);
            directories.push(source.clone());
        }
        mounts.push(Mount {
            source,
            target: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only == Some(true),
        });
    }
    Ok((mounts, directories))
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

/// Makes `subPath` directories; a file of that name is left as it is. Blocks on the disk.
pub(super) fn make_directories(directories: &[PathBuf]) -> Result<(), Error> {
    for directory in directories {
        if !directory.exists() {
            std::fs::create_dir_all(directory)?;
        }
    }
    Ok(())
}

/// Removes the pod's own directory. Absent: Ok. Blocks on the disk.
pub(super) fn remove(directory: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
