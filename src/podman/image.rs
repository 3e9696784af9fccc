//! Names of images, and making an image present on this machine.
//!
//! `nginx` means `docker.io/library/nginx:latest`, as in Kubernetes, whatever short-name rules this machine's Podman has; only an
//! image of that name built here (`localhost/nginx`) goes before it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, Shared, WeakShared};
use futures::{FutureExt, StreamExt};
use http::{Method, StatusCode};
use podman_api::opts::PullOpts;
use reconcilers::ports::{PortError, PullPolicy};
use serde::Deserialize;

use super::runtime::{LIMIT, Podman};
use super::socket::{CallError, within};

/// A pull of gigabytes over a slow line takes this long at most; after that it counts as failed and is tried anew.
const PULL_LIMIT: Duration = Duration::from_secs(30 * 60);

/// The longest name (without tag and digest) that registries take.
const NAME_BYTES_MAX: usize = 255;

const DEFAULT_REGISTRY: &str = "docker.io";
const LOCAL_REGISTRY: &str = "localhost";

/// The name of an image, complete.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ImageName {
    /// With registry and tag or digest.
    full: String,
    /// The name that a build on this machine gave it, to be preferred if there is such an image.
    local: Option<String>,
    /// It can be pulled from nowhere (`localhost/...`).
    only_local: bool,
}

impl ImageName {
    /// Reads a name as it stands in a manifest ([distribution/reference](https://pkg.go.dev/github.com/distribution/reference)).
    ///
    /// # Errors
    /// `InvalidImageName`, with the rule that it breaks.
    pub(super) fn parse(text: &str) -> Result<Self, PortError> {
        let bad = |rule: &str| PortError::Refused {
            reason: "InvalidImageName",
            message: format!("`{text}` is not the name of an image: {rule}"),
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(bad(
                "after `@` stands a digest, sha256: and 64 hexadecimal digits",
            ));
        }
        let last_element = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last_element..].split_once(':') {
            Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], Some(tag)),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("a tag has letters, digits, `_`, `.` and `-`, at most 128"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (Some(first), path),
            _ => (None, name),
        };
        if name.len() > NAME_BYTES_MAX {
            return Err(bad("it is longer than 255 characters"));
        }
        if !path.split('/').all(is_path_element) {
            return Err(bad(
                "it consists of lower-case letters and digits, with `.`, `_`, `__` or `-` between them",
            ));
        }
        if is_image_id(path) {
            return Err(bad("it is the id of an image"));
        }
        // Podman takes a tag or a digest, not both; the digest says all.
        let version = match (digest, tag) {
            (Some(digest), _) => format!("@{digest}"),
            (None, tag) => format!(":{}", tag.unwrap_or("latest")),
        };
        let (host, is_docker) = match registry {
            None | Some("docker.io" | "index.docker.io") => (DEFAULT_REGISTRY, true),
            Some(host) => (host, false),
        };
        let library = if is_docker && !path.contains('/') {
            "library/"
        } else {
            ""
        };
        Ok(Self {
            full: format!("{host}/{library}{path}{version}"),
            local: registry
                .is_none()
                .then(|| format!("{LOCAL_REGISTRY}/{path}{version}")),
            only_local: host == LOCAL_REGISTRY,
        })
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Tells a registry from the first element of a path: it has a dot, a port, or is `localhost`.
fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    (text == LOCAL_REGISTRY || text.contains(['.', ':']))
        && port.parse::<u16>().is_ok()
        && !host.is_empty()
        && !host.starts_with(['.', '-'])
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
}

fn is_path_element(text: &str) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(is_letter)
        && bytes.last().is_some_and(is_letter)
        && bytes.split(is_letter).all(|between| {
            matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|byte| *byte == b'-')
        })
}

fn is_image_id(path: &str) -> bool {
    path.len() == 64 && path.bytes().all(|byte| byte.is_ascii_hexdigit())
}

type Pull = BoxFuture<'static, Result<(), Arc<CallError>>>;

/// The pulls that run, by full name: who wants an image that is being pulled waits for that pull.
#[derive(Debug, Default)]
pub(super) struct Pulls(Mutex<HashMap<String, WeakShared<Pull>>>);

impl Pulls {
    fn join(&self, name: &str, start: impl FnOnce() -> Pull) -> Shared<Pull> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A pull lives as long as somebody waits for it.
        running.retain(|_, pull| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        if let Some(pull) = running.get(name).and_then(WeakShared::upgrade) {
            return pull;
        }
        let pull = start().shared();
        if let Some(weak) = pull.downgrade() {
            running.insert(name.to_owned(), weak);
        }
        pull
    }
}

/// What is read of an image's inspection.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    #[serde(default)]
    user: String,
}

impl Podman {
    /// Finds the name under which Podman knows the image, or would after a pull; the flag says whether it is there.
    pub(super) async fn resolve(&self, name: &ImageName) -> Result<(String, bool), CallError> {
        if let Some(local) = &name.local
            && self.has_image(local).await?
        {
            return Ok((local.clone(), true));
        }
        Ok((name.full.clone(), self.has_image(&name.full).await?))
    }

    async fn has_image(&self, full_name: &str) -> Result<bool, CallError> {
        within(LIMIT, self.api.images().get(full_name).exists()).await
    }

    /// See [`reconcilers::ports::ContainerRuntime::image_user`].
    pub(super) async fn user_of(&self, image: &str) -> Result<String, PortError> {
        let name = ImageName::parse(image)?;
        let look = async {
            let (found, _) = self.resolve(&name).await?;
            let target = format!("/images/{found}/json");
            self.socket
                .json::<Inspected>(Method::GET, &target, None, LIMIT)
                .await
        };
        match look.await {
            Ok(inspected) => Ok(inspected.user),
            Err(error) => Err(error.into_port("look at the image", "InspectFailed")),
        }
    }

    /// See [`reconcilers::ports::ContainerRuntime::ensure_image`].
    pub(super) async fn make_present(
        &self,
        image: &str,
        policy: PullPolicy,
        pulling: &(dyn Fn() + Send + Sync),
    ) -> Result<(), PortError> {
        let name = ImageName::parse(image)?;
        let (found, present) = self
            .resolve(&name)
            .await
            .map_err(|error| error.into_port("look for the image", "ErrImagePull"))?;
        // What was built here comes from no registry, so `Always` has nothing to ask.
        let is_local = found != name.full || name.only_local;
        match policy {
            PullPolicy::IfNotPresent | PullPolicy::Never if present => return Ok(()),
            PullPolicy::Always if present && is_local => return Ok(()),
            PullPolicy::Never => {
                return Err(PortError::Refused {
                    reason: "ErrImageNeverPull",
                    message: format!("image `{image}` is not present and its pull policy is Never"),
                });
            }
            PullPolicy::IfNotPresent | PullPolicy::Always => {}
        }
        if name.only_local {
            return Err(PortError::Refused {
                reason: "ErrImagePull",
                message: format!("image `{image}` is not on this node, and localhost/ is no registry"),
            });
        }
        pulling();
        let api = self.api.clone();
        let reference = name.full.clone();
        self.pulls
            .join(&name.full, || pull(api, reference).boxed())
            .await
            .map_err(|error| match &*error {
                CallError::Status { message, .. } => PortError::Refused {
                    reason: "ErrImagePull",
                    message: message.clone(),
                },
                CallError::Unavailable(message) => PortError::Unavailable {
                    operation: "pull the image",
                    message: message.clone(),
                },
            })
    }
}

async fn pull(api: podman_api::Podman, reference: String) -> Result<(), Arc<CallError>> {
    let options = PullOpts::builder().reference(reference).build();
    let images = api.images();
    within(PULL_LIMIT, async {
        let mut reports = images.pull(&options);
        while let Some(report) = reports.next().await {
            // A pull that failed is a 200 with an error inside.
            if let Some(message) = report.map_err(CallError::from)?.error {
                return Err(CallError::Status {
                    status: StatusCode::INTERNAL_SERVER_ERROR,
                    message,
                });
            }
        }
        Ok(())
    })
    .await
    .map_err(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_they_mean_in_kubernetes() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, full, local) in [
            (
                "nginx",
                "docker.io/library/nginx:latest",
                Some("localhost/nginx:latest"),
            ),
            (
                "nginx:1.27",
                "docker.io/library/nginx:1.27",
                Some("localhost/nginx:1.27"),
            ),
            (
                "team/web",
                "docker.io/team/web:latest",
                Some("localhost/team/web:latest"),
            ),
            ("docker.io/nginx", "docker.io/library/nginx:latest", None),
            ("index.docker.io/a/b:c", "docker.io/a/b:c", None),
            ("localhost/busybox:test", "localhost/busybox:test", None),
            ("localhost:5000/web", "localhost:5000/web:latest", None),
            ("quay.io/a/b/c:v1", "quay.io/a/b/c:v1", None),
            ("REGISTRY.example/a", "REGISTRY.example/a:latest", None),
            (
                &format!("quay.io/a:v1@{digest}"),
                &format!("quay.io/a@{digest}"),
                None,
            ),
            (
                "a__b/c-d.e_f",
                "docker.io/a__b/c-d.e_f:latest",
                Some("localhost/a__b/c-d.e_f:latest"),
            ),
        ] {
            let name = ImageName::parse(text).unwrap();
            assert_eq!(
                (name.full.as_str(), name.local.as_deref()),
                (full, local),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a/".repeat(130) + "a";
        for text in [
            "",
            " ",
            "Nginx",
            "nginx:",
            "nginx:a b",
            "nginx:-a",
            "/nginx",
            "nginx/",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "nginx@sha256:12",
            "nginx@",
            "http://x/y",
            "x:99999/y",
            "nginx:a/b",
            "nginx?all=1",
            "../etc",
            &"a".repeat(64),
            &long,
        ] {
            assert!(
                matches!(
                    ImageName::parse(text),
                    Err(PortError::Refused {
                        reason: "InvalidImageName",
                        ..
                    })
                ),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn one_pull_at_a_time_for_an_image() {
        let pulls = Pulls::default();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let first = pulls.join("a", || {
            async {
                let _ = finished.await;
                Ok(())
            }
            .boxed()
        });
        let second = pulls.join("a", || unreachable!("the first one runs"));
        let other = pulls.join("b", || async { Ok(()) }.boxed());
        assert!(other.await.is_ok());
        finish.send(()).unwrap();
        assert!(first.await.is_ok() && second.await.is_ok());
        let failed = Arc::new(CallError::Unavailable(String::new()));
        let again = pulls.join("a", || async { Err(failed) }.boxed());
        assert!(again.await.is_err(), "a pull that ended is not joined");
    }
}
