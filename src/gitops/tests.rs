//! Rounds against real repositories, made by the `git` program, and a cluster in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use schemas::{Object, ObjectKey};
use store::{Applied, Outcome, Revision, View};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::run::Round;
use super::{Applier, ApplierError, Gitops, GitopsConfig, Inventory, MANAGER, Source, SourceError};

/// Objects with their uids; refuses all when one has the label `refuse`, as validation does, and stops at one with the
/// label `stop`, as a full disk does.
#[derive(Default)]
struct MemoryCluster {
    objects: Mutex<BTreeMap<String, (String, Object)>>,
    next_uid: Mutex<u32>,
}

impl MemoryCluster {
    fn names(&self) -> Vec<String> {
        self.objects.lock().expect("lock").keys().cloned().collect()
    }

    fn new_uid(&self) -> String {
        let mut next = self.next_uid.lock().expect("lock");
        *next += 1;
        format!("uid-{next}")
    }

    /// Someone else deletes an object and makes another of that name.
    fn replace(&self, key: &str) {
        let uid = self.new_uid();
        self.objects.lock().expect("lock").get_mut(key).expect("there").0 = uid;
    }
}

#[async_trait]
impl Applier for MemoryCluster {
    async fn apply(&self, objects: Vec<Object>, manager: &str) -> Result<Vec<Applied>, ApplierError> {
        assert_eq!(manager, MANAGER);
        let refused = objects.iter().find(|object| object.label("refuse").is_some());
        if let Some(object) = refused {
            return Err(ApplierError::Refused(vec![format!(
                "{}: not valid",
                object.name()
            )]));
        }
        let apply = |mut object: Object| {
            let key = object.key().expect("a key");
            let mut all = self.objects.lock().expect("lock");
            let before = all.get(&key.to_string()).cloned();
            let outcome = match &before {
                None => Outcome::Created,
                Some((_, before)) if *before == object => Outcome::Unchanged,
                Some(_) => Outcome::Configured,
            };
            let uid = before.map_or_else(|| self.new_uid(), |(uid, _)| uid);
            all.insert(key.to_string(), (uid.clone(), object.clone()));
            object.set(&["metadata", "uid"], uid);
            Applied {
                outcome,
                view: View {
                    key,
                    object: Arc::new(object),
                    revision: Revision(1),
                    managed: None,
                    stored: true,
                },
            }
        };
        let mut applied = Vec::new();
        for object in objects {
            if object.label("stop").is_some() {
                let reason = format!("stopped at {}", object.name());
                return Err(ApplierError::Stopped { applied, reason });
            }
            applied.push(apply(object));
        }
        Ok(applied)
    }

    async fn delete(&self, key: &ObjectKey, uid: &str) -> Result<(), ApplierError> {
        let mut all = self.objects.lock().expect("lock");
        if all.get(&key.to_string()).is_some_and(|(found, _)| found == uid) {
            all.remove(&key.to_string());
        }
        Ok(())
    }
}

/// A repository in a temporary directory.
struct Repository {
    directory: TempDir,
}

impl Repository {
    fn new() -> Self {
        let repository = Self {
            directory: TempDir::new().expect("a directory"),
        };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn git(&self, arguments: &[&str]) {
        let output = Command::new("git")
            .current_dir(self.path())
            .args([
                "-c",
                "user.name=test",
                "-c",
                "user.email=test@test",
                "-c",
                "commit.gpgsign=false",
            ])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .output()
            .expect("this test needs the git program (Debian package git)");
        assert!(
            output.status.success(),
            "git {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let file = self.path().join(path);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("directories");
        std::fs::write(file, text).expect("write");
        self
    }

    fn remove(&self, path: &str) -> &Self {
        std::fs::remove_file(self.path().join(path)).expect("remove");
        self
    }

    fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message=change"]);
    }
}

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n")
}

/// A repository, a cluster that follows it, and what the last round left.
struct World {
    repository: Repository,
    cluster: Arc<MemoryCluster>,
    gitops: Gitops,
    inventory: Inventory,
    _data_dir: TempDir,
}

impl World {
    fn new(path: &str) -> Self {
        let repository = Repository::new();
        let data_dir = TempDir::new().expect("a directory");
        let cluster = Arc::new(MemoryCluster::default());
        let config = GitopsConfig {
            repository: repository.path().display().to_string(),
            branch: "main".into(),
            path: path.into(),
            interval: Duration::from_secs(60),
            data_dir: data_dir.path().to_owned(),
        };
        Self {
            gitops: Gitops::new(&config, cluster.clone()).expect("a valid config"),
            repository,
            cluster,
            inventory: Inventory::default(),
            _data_dir: data_dir,
        }
    }

    async fn round(&mut self) -> Round {
        let round = self
            .gitops
            .round(&self.inventory, || true)
            .await
            .expect("the owner");
        if let Some(inventory) = &round.inventory {
            self.inventory = inventory.clone();
        }
        round
    }

    async fn synced(&mut self) -> Round {
        let round = self.round().await;
        assert_eq!(round.error, None);
        round
    }

    /// A round that fails, names `expected`, and changes nothing.
    async fn failed(&mut self, expected: &str) {
        let before = (self.cluster.names(), self.inventory.clone());
        let error = self.round().await.error.expect("a failure");
        assert!(error.contains(expected), "{error}");
        assert_eq!((self.cluster.names(), self.inventory.clone()), before);
    }
}

#[tokio::test]
async fn the_cluster_follows_the_branch() {
    let mut world = World::new("./");
    world
        .repository
        .write("a.yaml", &service("a"))
        .write("sub/b.yml", &service("b"));
    world
        .repository
        .write("readme.md", "no manifest")
        .write(".github/ci.yaml", "on: push");
    world.repository.commit();
    let first = world.synced().await;
    assert_eq!((first.changed, first.pruned), (2, 0));
    assert_eq!(
        world.cluster.names(),
        ["services/default/a", "services/default/b"]
    );

    let same = world.synced().await;
    assert_eq!((same.changed, same.pruned, &same.commit), (0, 0, &first.commit));

    world.repository.remove("sub/b.yml").write(
        "c.json",
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}"#,
    );
    world.repository.commit();
    let next = world.synced().await;
    assert_eq!((next.changed, next.pruned), (1, 1));
    assert_ne!(next.commit, first.commit);
    assert_eq!(world.cluster.names(), ["pods/default/c", "services/default/a"]);
}

#[tokio::test]
async fn only_what_it_applied_itself_is_pruned() {
    let mut world = World::new("");
    world
        .repository
        .write("a.yaml", &service("a"))
        .write("b.yaml", &service("b"));
    world.repository.commit();
    world.synced().await;
    world.cluster.replace("services/default/b");
    world.repository.remove("b.yaml");
    world.repository.commit();
    world.synced().await;
    assert_eq!(
        world.cluster.names(),
        ["services/default/a", "services/default/b"]
    );
    assert_eq!(world.inventory.objects.len(), 1);
}

#[tokio::test]
async fn a_broken_manifest_changes_nothing() {
    let mut world = World::new("./");
    world
        .repository
        .write("a.yaml", &service("a"))
        .write("b.yaml", &service("b"));
    world.repository.commit();
    world.synced().await;

    world
        .repository
        .remove("a.yaml")
        .write("b.yaml", "kind: [")
        .write("c.yaml", &service("c"));
    world.repository.commit();
    world.failed("b.yaml: document 1").await;
    let refused = service("b").replace("{name: b}", "{name: b, labels: {refuse: x}}");
    world.repository.write("b.yaml", &refused);
    world.repository.commit();
    world.failed("b: not valid").await;

    world.repository.write("b.yaml", &service("b"));
    world.repository.commit();
    world.synced().await;
    assert_eq!(
        world.cluster.names(),
        ["services/default/b", "services/default/c"]
    );
}

#[tokio::test]
async fn what_a_round_that_stopped_applied_is_pruned_later() {
    let mut world = World::new("./");
    let stops = service("b").replace("{name: b}", "{name: b, labels: {stop: x}}");
    world.repository.write("z.yaml", &service("z"));
    world.repository.commit();
    world.synced().await;
    world
        .repository
        .write("a.yaml", &service("a"))
        .write("b.yaml", &stops);
    world.repository.commit();
    let stopped = world.round().await;
    assert_eq!(
        stopped
            .error
            .as_deref()
            .map(|error| error.ends_with("stopped at b")),
        Some(true)
    );
    assert_eq!(
        world.cluster.names(),
        ["services/default/a", "services/default/z"],
        "nothing is pruned"
    );
    world
        .repository
        .remove("a.yaml")
        .remove("b.yaml")
        .remove("z.yaml");
    world.repository.write("c.yaml", &service("c"));
    world.repository.commit();
    assert_eq!(world.synced().await.pruned, 2);
    assert_eq!(world.cluster.names(), ["services/default/c"]);
}

#[tokio::test]
async fn a_missing_path_branch_or_repository_changes_nothing() {
    let mut world = World::new("/deploy/prod/");
    world
        .repository
        .write("deploy/prod/a.yaml", &service("a"))
        .write("other.yaml", "kind: [");
    world.repository.commit();
    world.synced().await;
    assert_eq!(world.cluster.names(), ["services/default/a"]);

    world.repository.remove("deploy/prod/a.yaml");
    world.repository.commit();
    world.failed("no directory or manifest `deploy/prod`").await;
    world.repository.git(&["branch", "--move", "elsewhere"]);
    world.failed("no branch `main`").await;
    std::fs::remove_dir_all(world.repository.path().join(".git")).expect("remove");
    world.failed("cannot fetch branch `main`").await;
}

#[tokio::test]
async fn a_forced_push_is_followed() {
    let mut world = World::new("./");
    world.repository.write("a.yaml", &service("a"));
    world.repository.commit();
    world.repository.write("b.yaml", &service("b"));
    world.repository.commit();
    world.synced().await;
    world.repository.git(&["reset", "--quiet", "--hard", "HEAD~1"]);
    world.repository.write("c.yaml", &service("c"));
    world.repository.git(&["add", "--all"]);
    world
        .repository
        .git(&["commit", "--quiet", "--amend", "--message=rewritten"]);
    world.synced().await;
    assert_eq!(
        world.cluster.names(),
        ["services/default/a", "services/default/c"]
    );
}

#[tokio::test]
async fn links_are_not_followed_and_one_file_may_be_the_path() {
    let repository = Repository::new();
    repository.write("dir/a.yaml", &service("a"));
    std::os::unix::fs::symlink("/etc/passwd", repository.path().join("dir/passwd.yaml")).expect("link");
    std::os::unix::fs::symlink("/etc", repository.path().join("etc")).expect("link");
    repository.commit();
    let data_dir = TempDir::new().expect("a directory");
    let url = format!("file://{}", repository.path().display());
    let fetch = async |path: &str| {
        let source = Source::new(&url, "main", path, data_dir.path()).expect("a valid config");
        let snapshot = source.fetch().await?;
        Ok::<_, SourceError>(
            snapshot
                .files
                .into_iter()
                .map(|(path, _)| path)
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(fetch("").await.expect("a snapshot"), ["dir/a.yaml"]);
    assert_eq!(fetch("dir/a.yaml").await.expect("a snapshot"), ["dir/a.yaml"]);
    assert!(matches!(fetch("etc").await, Err(SourceError::NoPath { .. })));
    assert!(matches!(
        fetch("dir/passwd.yaml").await,
        Err(SourceError::NoPath { .. })
    ));
}

#[tokio::test]
async fn a_damaged_copy_is_replaced_and_a_node_that_lost_the_repository_does_nothing() {
    let mut world = World::new("./");
    world.repository.write("a.yaml", &service("a"));
    world.repository.commit();
    assert_eq!(world.gitops.round(&world.inventory, || false).await, None);
    assert!(world.cluster.names().is_empty());
    let copies = world._data_dir.path().join("gitops");
    for copy in std::fs::read_dir(&copies).expect("the copy") {
        let copy = copy.expect("an entry").path();
        std::fs::remove_file(copy.join("HEAD")).expect("remove");
    }
    world.synced().await;
    assert_eq!(world.cluster.names(), ["services/default/a"]);
}

#[test]
fn flags_are_checked_and_who_asks_is_never_shown() {
    let directory = Path::new("/nonexistent");
    let source = |url: &str, branch: &str, path: &str| Source::new(url, branch, path, directory);
    let plain = source("https://example.com/r.git", "main", "./a//b/").expect("valid");
    assert_eq!(plain.path(), "a/b");
    for url in [
        "https://user:secret@example.com/r.git",
        "https://ghp_token@example.com/r.git",
    ] {
        let shown = source(url, "main", "").expect("valid");
        assert_eq!(shown.repository(), "https://example.com/r.git");
        assert_eq!(shown.id(), plain.id(), "another token, the same repository");
    }
    let ssh = source("ssh://git:secret@example.com/r.git", "main", "").expect("valid");
    assert_eq!(ssh.repository(), "ssh://git@example.com/r.git");
    for (url, branch, path, expected) in [
        ("", "main", "", "--gitops-repo"),
        ("https://example.com/r", "a..b", "", "--gitops-branch"),
        ("https://example.com/r", "", "", "--gitops-branch"),
        ("https://example.com/r", "main", "a/../../b", "--gitops-path"),
    ] {
        let error = source(url, branch, path).err().expect("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// The URL for [`fetches_over_https`], which runs in a process of its own: which authorities are trusted is a variable of the
/// process.
const HTTPS_URL: &str = "PODMAN_SWARM_TEST_HTTPS_URL";

#[tokio::test]
async fn https_works_on_ring_with_a_password_and_checks_certificates() {
    let repository = Repository::new();
    repository.write("a.yaml", &service("a")).commit();
    let directory = TempDir::new().expect("a directory");
    let (address, certificate) = serve_https(repository.path().join(".git")).await;
    let certificate_file = directory.path().join("ca.pem");
    std::fs::write(&certificate_file, certificate).expect("write");

    let url = format!("https://user:secret@{address}/repository");
    let source = Source::new(&url, "main", "", directory.path()).expect("a valid config");
    let error = source
        .fetch()
        .await
        .expect_err("an unknown certificate")
        .to_string();
    assert!(error.contains("certificate"), "{error}");
    assert!(!error.contains("secret"), "{error}");

    for (url, works) in [
        (url.clone(), true),
        (url.replace("secret", "wrong"), false),
        (url.replace("user:secret", "ghp_wrong"), false),
    ] {
        let output = tokio::process::Command::new(std::env::current_exe().expect("this program"))
            .args([
                "--exact",
                "--ignored",
                "--nocapture",
                "gitops::tests::fetches_over_https",
            ])
            .env("SSL_CERT_FILE", &certificate_file)
            .env(HTTPS_URL, url)
            .output()
            .await
            .expect("this program again");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), works, "{text}");
        assert!(works || text.contains("cannot fetch"), "{text}");
        assert!(!text.contains("wrong"), "{text}");
    }
}

#[tokio::test]
#[ignore = "started by https_works_on_ring_with_a_password_and_checks_certificates"]
async fn fetches_over_https() {
    let url = std::env::var(HTTPS_URL).expect("the URL");
    let directory = TempDir::new().expect("a directory");
    let source = Source::new(&url, "main", "", directory.path()).expect("a valid config");
    let snapshot = source.fetch().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(snapshot.files.len(), 1);
}

/// A Git server over HTTPS (`git http-backend`) for one repository, for `user` with `secret`, and its certificate (PEM).
async fn serve_https(git_dir: PathBuf) -> (SocketAddr, String) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a config");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("socket");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let git_dir = git_dir.clone();
            let service = service_fn(move |request| http_backend(git_dir.clone(), request));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move { connection.await.ok() });
        }
    });
    (address, made.cert.pem())
}

/// Runs `git http-backend`, a CGI program.
async fn http_backend(
    git_dir: PathBuf,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let header = |name: &str| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    // user:secret
    if header("authorization") != "Basic dXNlcjpzZWNyZXQ=" {
        let refusal = Response::builder()
            .status(401)
            .header("www-authenticate", "Basic realm=\"git\"");
        return Ok(refusal.body(Full::default()).expect("a response"));
    }
    let body = body.collect().await.expect("a body").to_bytes();
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_PROJECT_ROOT", &git_dir)
        .env("PATH_INFO", head.uri.path().trim_start_matches("/repository"))
        .env("QUERY_STRING", head.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", head.method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().expect("a pipe").write_all(&body).await?;
    let output = child.wait_with_output().await?.stdout;
    let end = output
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a CGI header");
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").expect("a header");
        response = match name {
            "Status" => response.status(value.get(..3).expect("a status")),
            _ => response.header(name, value),
        };
    }
    Ok(response
        .body(Full::from(output[end + 4..].to_vec()))
        .expect("a response"))
}
