//! What the agent asks of Podman at start-up: is it there, which version, on which machine.

use std::time::Duration;

use http::Method;
use reconcilers::ports::{ContainerRuntime, PortError};
use serde::Deserialize;

use super::runtime::Podman;
use super::socket::{CallError, within};

/// `info` takes Podman 200 ms on a quiet machine; a machine that boots may be a hundred times slower.
const LIMIT: Duration = Duration::from_secs(20);

/// The oldest Podman whose API has all that we use.
const VERSION_MIN: (u32, u32) = (4, 3);

/// Podman cannot be used; the text names the socket and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("Podman's socket `{0}` is not of the form unix:///path")]
    Address(String),
    #[error("Podman does not answer at unix://{socket}: {message}; enable it with `{remedy}`")]
    Unreachable {
        socket: String,
        message: String,
        remedy: &'static str,
    },
    #[error("Podman {0} is too old: 4.3 or newer is needed")]
    TooOld(String),
}

/// The machine and the engine, as Podman describes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    pub podman_version: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    pub kernel_version: String,
    /// Distribution and version (`debian 12`).
    pub os_image: String,
    /// As Go names it (`amd64`), which is also what Kubernetes' labels want.
    pub architecture: String,
}

// A view of `info`, because the model in `podman-api` demands the types of 4.3 for two hundred fields, of which Podman 5
// has changed some.
#[derive(Deserialize)]
struct InfoAnswer {
    host: Host,
    version: Version,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Host {
    arch: String,
    cpus: u32,
    kernel: String,
    mem_total: u64,
    #[serde(default)]
    distribution: Distribution,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Distribution {
    distribution: String,
    version: String,
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "Version")]
    version: String,
}

impl Podman {
    /// Asks whether Podman answers; cheap enough for a periodic check.
    ///
    /// # Errors
    /// [`EngineError::Unreachable`].
    pub async fn ping(&self) -> Result<(), EngineError> {
        within(LIMIT, self.api.ping())
            .await
            .map(|_| ())
            .map_err(|error| self.unreachable(&error))
    }

    /// Kills and removes every container of this cluster on this machine, for a node that leaves it.
    ///
    /// # Errors
    /// Podman does not answer, or the first one that it refuses to remove, after all others were.
    pub async fn remove_all(&self) -> Result<(), PortError> {
        let mut result = Ok(());
        for container in self.list().await? {
            result = result.and(self.remove(&container.id).await);
        }
        result
    }

    /// Describes the machine and its engine. Takes Podman 200 ms: ask once, not in a loop.
    ///
    /// # Errors
    /// [`EngineError::Unreachable`] and [`EngineError::TooOld`].
    pub async fn engine(&self) -> Result<Engine, EngineError> {
        let answer: InfoAnswer = self
            .socket
            .json(Method::GET, "/info", None, LIMIT)
            .await
            .map_err(|error| self.unreachable(&error))?;
        if !is_new_enough(&answer.version.version) {
            return Err(EngineError::TooOld(answer.version.version));
        }
        let Distribution {
            distribution,
            version,
        } = answer.host.distribution;
        Ok(Engine {
            podman_version: answer.version.version,
            cpus: answer.host.cpus,
            memory_bytes: answer.host.mem_total,
            kernel_version: answer.host.kernel,
            os_image: format!("{distribution} {version}").trim().to_owned(),
            architecture: answer.host.arch,
        })
    }

    fn unreachable(&self, error: &CallError) -> EngineError {
        EngineError::Unreachable {
            socket: self.socket.path().display().to_string(),
            message: error.to_string(),
            remedy: if rustix::process::geteuid().is_root() {
                "systemctl enable --now podman.socket"
            } else {
                "systemctl --user enable --now podman.socket"
            },
        }
    }
}

/// Compares the first two numbers of a version; one that cannot be read is taken to be new.
fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= VERSION_MIN,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::is_new_enough;

    #[test]
    fn refuses_podman_before_4_3() {
        for (version, expected) in [
            ("4.3.1", true),
            ("4.2.0", false),
            ("3.4.4", false),
            ("5.0.0-rc1", true),
            ("4.10.0", true),
            ("devel", true),
        ] {
            assert_eq!(is_new_enough(version), expected, "{version}");
        }
    }
}
