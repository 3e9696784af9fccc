//! One branch of a Git repository, read commit by commit without a work tree.
//!
//! Fetches shallowly into a bare repository in the data directory, and reads blobs out of the commit's tree: nothing is
//! checked out, so no symbolic link, filter or hook of the repository ever acts on this machine.

use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gix::bstr::ByteSlice;
use gix::object::tree::EntryKind;
use gix::progress::Discard;
use gix::remote::Direction;
use gix::remote::fetch::{Shallow, Tags};
use schemas::{hex, with_causes};
use sha2::{Digest, Sha256};

/// A fetch that takes longer has failed; a shallow one of manifests takes seconds.
const FETCH_TIMEOUT: Duration = Duration::from_secs(300);

/// Asking a server that failed once more, for the reason.
const DIAGNOSIS_TIMEOUT: Duration = Duration::from_secs(10);

/// Manifests in one commit.
const MAX_FILES: usize = 10_000;

/// One manifest file: what `schemas::manifest` reads at most.
const MAX_FILE_BYTES: u64 = schemas::manifest::MAX_MANIFEST_BYTES as u64;

/// All manifests of a commit together; they are in memory while they are applied.
const MAX_TOTAL_BYTES: u64 = 64 << 20;

/// Levels of directories below the path.
const MAX_DEPTH: usize = 32;

/// Each fetch of a new commit leaves a pack; above this the local copy is thrown away and fetched anew, which is cheaper
/// than repacking since it is shallow.
const MAX_PACKS: usize = 64;

/// Where the branch is kept in the local copy.
const LOCAL_REFERENCE: &str = "refs/gitops/head";

/// The ssh program must fail rather than ask a question that nobody sees, or wait for a server that vanished: a minute
/// (4 x 15 s) after its last word.
const SSH_COMMAND: &str = "core.sshCommand=ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15 -o ServerAliveCountMax=4";

/// A user's name of fewer bytes is no token, and may be a part of other words.
const MIN_TOKEN_BYTES: usize = 8;

/// The manifests of one commit.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The commit's id, in hex.
    pub commit: String,
    /// Path in the repository and content of each `*.yaml`, `*.yml` and `*.json`, sorted by path.
    pub files: Vec<(String, Vec<u8>)>,
}

/// A flag that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("--gitops-repo `{url}` is not a repository's URL or path: {reason}")]
    Repository { url: String, reason: String },
    #[error("--gitops-branch `{0}` is not a branch name")]
    Branch(String),
    #[error("--gitops-path `{0}` must be a path inside the repository, without `..`")]
    Path(String),
}

/// Why a snapshot could not be had. Nothing follows from it for what was applied before.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot fetch branch `{branch}` of {repository}: {reason}")]
    Fetch {
        repository: String,
        branch: String,
        reason: String,
    },
    #[error("{repository} has no branch `{branch}`")]
    NoBranch { repository: String, branch: String },
    #[error("branch `{branch}` of {repository} has no directory or manifest `{path}` (commit {commit})")]
    NoPath {
        repository: String,
        branch: String,
        path: String,
        commit: String,
    },
    #[error("`{path}` of {repository}: {what}, at most {limit} are read")]
    TooLarge {
        repository: String,
        path: String,
        what: &'static str,
        limit: u64,
    },
    #[error("cannot read commit {commit} of {repository}: {reason}")]
    Read {
        repository: String,
        commit: String,
        reason: String,
    },
    #[error("cannot use {directory} for the copy of {repository}: {reason}")]
    Local {
        repository: String,
        directory: String,
        reason: String,
    },
}

/// A branch of a repository, and the path in it that holds manifests. Cheap to clone.
#[derive(Clone)]
pub struct Source {
    inner: Arc<Inner>,
}

struct Inner {
    url: gix::Url,
    /// The URL for people: without password, and for HTTP without user, which may be a token.
    repository: String,
    /// Hash of `repository`.
    id: String,
    branch: String,
    /// Elements of the path, without `.`; empty: all of the repository.
    path: String,
    directory: PathBuf,
    /// Held while a fetch runs: one that hangs beyond its timeout keeps the next from piling up behind it.
    busy: Mutex<()>,
}

impl Source {
    /// Names a branch and a path of a repository, kept below `<data_dir>/gitops`. Reaches nothing yet. The URL's user and
    /// password, if it has them, are used when the server asks for them, and never shown.
    ///
    /// # Errors
    /// The flag that cannot be used.
    pub fn new(url: &str, branch: &str, path: &str, data_dir: &Path) -> Result<Self, ConfigError> {
        let parsed = gix::url::parse(url.as_bytes().as_bstr()).map_err(|error| ConfigError::Repository {
            // It could not be parsed, so a password in it cannot be found either.
            url: "…".into(),
            reason: with_causes(&error),
        })?;
        let mut shown = parsed.clone();
        shown.password = None;
        if is_http(&parsed) {
            shown.user = None;
        }
        let repository = shown.to_bstring().to_string();
        let reference = format!("refs/heads/{branch}");
        gix::validate::reference::name(reference.as_bytes().as_bstr())
            .map_err(|_| ConfigError::Branch(branch.into()))?;
        let id = hex(&Sha256::digest(&repository)[..8]);
        Ok(Self {
            inner: Arc::new(Inner {
                path: inner_path(path).ok_or_else(|| ConfigError::Path(path.into()))?,
                url: parsed,
                branch: branch.into(),
                directory: data_dir.join("gitops").join(&id),
                repository,
                id,
                busy: Mutex::new(()),
            }),
        })
    }

    /// The repository's URL, without what proves who asks.
    pub fn repository(&self) -> &str {
        &self.inner.repository
    }

    /// A short name for the repository, whatever branch or path of it is followed; safe as a file's and an object's name.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The branch followed.
    pub fn branch(&self) -> &str {
        &self.inner.branch
    }

    /// The path below which manifests are read; empty for all of the repository.
    pub fn path(&self) -> &str {
        &self.inner.path
    }

    /// Fetches the branch and reads its manifests. Runs on a blocking thread; dropping the future interrupts the fetch.
    ///
    /// # Errors
    /// The repository, branch or path is not there, or exceeds a limit.
    pub async fn fetch(&self) -> Result<Snapshot, SourceError> {
        /// Interrupts the fetch when the caller no longer waits for it.
        struct Interrupt(Arc<AtomicBool>);
        impl Drop for Interrupt {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let interrupt = Interrupt(Arc::default());
        let (inner, flag) = (self.inner.clone(), interrupt.0.clone());
        let fetch = tokio::task::spawn_blocking(move || inner.fetch(&flag));
        match tokio::time::timeout(FETCH_TIMEOUT, fetch).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(self.inner.fetch_error(&panic)),
            Err(_) => Err(self
                .inner
                .fetch_failed(format!("no end after {} s", FETCH_TIMEOUT.as_secs()))),
        }
    }
}

impl Inner {
    fn fetch(&self, interrupt: &AtomicBool) -> Result<Snapshot, SourceError> {
        let Ok(_busy) = self.busy.try_lock() else {
            return Err(self.fetch_failed("the fetch before still hangs".into()));
        };
        // HTTPS in gix takes the process's provider of cryptography; set already: the same one, as ring is all we link.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let repository = self.open()?;
        let commit = self.fetch_commit(&repository, interrupt)?;
        let snapshot = self.read(&repository, commit);
        if let Err(SourceError::Read { .. }) = &snapshot {
            // The copy is damaged: the next round begins with a new one.
            self.remove_copy();
        }
        snapshot
    }

    /// Opens the local copy, or makes an empty one.
    fn open(&self) -> Result<gix::Repository, SourceError> {
        let packs = std::fs::read_dir(self.directory.join("objects/pack")).map_or(0, Iterator::count);
        // A pack has an index beside it.
        if packs > 2 * MAX_PACKS {
            self.remove_copy();
        }
        // Isolated: no configuration of a user or of the machine decides what happens here.
        let options = || gix::open::Options::isolated().config_overrides([SSH_COMMAND]);
        if let Ok(repository) = gix::open_opts(&self.directory, options()) {
            return Ok(repository);
        }
        self.remove_copy();
        let local_error = |reason: String| SourceError::Local {
            repository: self.repository.clone(),
            directory: self.directory.display().to_string(),
            reason,
        };
        std::fs::create_dir_all(&self.directory).map_err(|error| local_error(error.to_string()))?;
        let kind = gix::create::Kind::Bare;
        gix::ThreadSafeRepository::init_opts(
            &self.directory,
            kind,
            gix::create::Options::default(),
            options(),
        )
        .map(Into::into)
        .map_err(|error| local_error(with_causes(&error)))
    }

    fn remove_copy(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %self.directory.display(), %error, "cannot remove the copy of the repository");
        }
    }

    #[expect(clippy::result_large_err, reason = "the type of gix's credentials callback")]
    fn fetch_commit(
        &self,
        repository: &gix::Repository,
        interrupt: &AtomicBool,
    ) -> Result<gix::ObjectId, SourceError> {
        let specification = format!("+refs/heads/{}:{LOCAL_REFERENCE}", self.branch);
        let remote = repository
            .remote_at(self.url.clone())
            .map_err(|error| self.fetch_error(&error))?
            .with_fetch_tags(Tags::None)
            .with_refspecs([specification.as_str()], Direction::Fetch)
            .map_err(|error| self.fetch_error(&error))?;
        let prepared = remote
            .connect(Direction::Fetch)
            .map_err(|error| self.fetch_error(&error))?
            .with_credentials(|action| Ok(self.credentials(action)))
            .prepare_fetch(Discard, gix::remote::ref_map::Options::default())
            .map_err(|error| match self.http_failure() {
                Some(reason) => self.fetch_failed(reason),
                None => self.fetch_error(&error),
            })?;
        let mapping = prepared.ref_map().mappings.first();
        let Some(commit) = mapping
            .and_then(|mapping| mapping.remote.as_id())
            .map(ToOwned::to_owned)
        else {
            return Err(SourceError::NoBranch {
                repository: self.repository.clone(),
                branch: self.branch.clone(),
            });
        };
        prepared
            .with_shallow(Shallow::DepthAtRemote(std::num::NonZeroU32::MIN))
            .receive(Discard, interrupt)
            .map_err(|error| self.fetch_error(&error))?;
        Ok(commit)
    }

    /// Finds out why an HTTP server could not be asked (no such name, refused, a certificate that nobody vouches for):
    /// gix drops the cause. None: it can be asked, or is no HTTP server.
    fn http_failure(&self) -> Option<String> {
        if !is_http(&self.url) {
            return None;
        }
        let client = reqwest::blocking::Client::builder()
            .connect_timeout(DIAGNOSIS_TIMEOUT)
            .timeout(DIAGNOSIS_TIMEOUT);
        let request = client.build().ok()?.get(&self.repository);
        request.send().err().map(|error| with_causes(&error))
    }

    /// Gives the server what the URL has; never asks a person or runs a helper program.
    fn credentials(
        &self,
        action: gix::credentials::helper::Action,
    ) -> Option<gix::credentials::protocol::Outcome> {
        let gix::credentials::helper::Action::Get(context) = action else {
            return None;
        };
        let identity = gix::sec::identity::Account {
            username: self.url.user()?.to_owned(),
            // A token may stand alone, as the user.
            password: self.url.password().unwrap_or_default().to_owned(),
            oauth_refresh_token: None,
        };
        Some(gix::credentials::protocol::Outcome {
            identity,
            next: context.into(),
        })
    }

    fn read(&self, repository: &gix::Repository, commit: gix::ObjectId) -> Result<Snapshot, SourceError> {
        let unreadable = |reason: String| SourceError::Read {
            repository: self.repository.clone(),
            commit: commit.to_string(),
            reason,
        };
        let no_path = || SourceError::NoPath {
            repository: self.repository.clone(),
            branch: self.branch.clone(),
            path: self.path.clone(),
            commit: commit.to_string(),
        };
        let root = repository
            .find_commit(commit)
            .map_err(|error| unreadable(with_causes(&error)))?;
        let root = root.tree().map_err(|error| unreadable(with_causes(&error)))?;
        let mut found: Vec<(String, gix::ObjectId)> = Vec::new();
        let mut directories = Vec::new();
        if self.path.is_empty() {
            directories.push((String::new(), root.id, 0));
        } else {
            let entry = root
                .lookup_entry_by_path(&self.path)
                .map_err(|error| unreadable(with_causes(&error)))?;
            let entry = entry.ok_or_else(no_path)?;
            match entry.mode().kind() {
                EntryKind::Tree => directories.push((self.path.clone(), entry.object_id(), 0)),
                EntryKind::Blob | EntryKind::BlobExecutable => {
                    found.push((self.path.clone(), entry.object_id()))
                }
                EntryKind::Link | EntryKind::Commit => return Err(no_path()),
            }
        }
        while let Some((directory, id, depth)) = directories.pop() {
            let tree = repository
                .find_tree(id)
                .map_err(|error| unreadable(with_causes(&error)))?;
            for entry in tree.iter() {
                let entry = entry.map_err(|error| unreadable(with_causes(&error)))?;
                let Ok(name) = entry.filename().to_str() else {
                    continue;
                };
                // `.github` and its like hold YAML for other programs.
                if name.starts_with('.') {
                    continue;
                }
                let path = if directory.is_empty() {
                    name.to_owned()
                } else {
                    format!("{directory}/{name}")
                };
                match entry.mode().kind() {
                    EntryKind::Tree if depth == MAX_DEPTH => {
                        return Err(self.too_large(path, "directories too deep", MAX_DEPTH as u64));
                    }
                    EntryKind::Tree => directories.push((path, entry.object_id(), depth + 1)),
                    EntryKind::Blob | EntryKind::BlobExecutable if is_manifest(name) => {
                        found.push((path, entry.object_id()));
                    }
                    // A link may point anywhere, a submodule is another repository: neither is followed.
                    EntryKind::Blob | EntryKind::BlobExecutable | EntryKind::Link | EntryKind::Commit => {}
                }
            }
            if found.len() > MAX_FILES {
                return Err(self.too_large(self.path.clone(), "too many manifests", MAX_FILES as u64));
            }
        }
        found.sort();
        let mut total = 0;
        let mut files = Vec::with_capacity(found.len());
        for (path, id) in found {
            let header = repository
                .find_header(id)
                .map_err(|error| unreadable(with_causes(&error)))?;
            total += header.size();
            if header.size() > MAX_FILE_BYTES {
                return Err(self.too_large(path, "too many bytes", MAX_FILE_BYTES));
            }
            if total > MAX_TOTAL_BYTES {
                return Err(self.too_large(path, "too many bytes up to here", MAX_TOTAL_BYTES));
            }
            let mut blob = repository
                .find_blob(id)
                .map_err(|error| unreadable(with_causes(&error)))?;
            files.push((path, blob.take_data()));
        }
        Ok(Snapshot {
            commit: commit.to_string(),
            files,
        })
    }

    fn too_large(&self, path: String, what: &'static str, limit: u64) -> SourceError {
        SourceError::TooLarge {
            repository: self.repository.clone(),
            path,
            what,
            limit,
        }
    }

    fn fetch_error(&self, error: &dyn std::error::Error) -> SourceError {
        self.fetch_failed(with_causes(error))
    }

    fn fetch_failed(&self, reason: String) -> SourceError {
        let reason = self.redacted(reason);
        SourceError::Fetch {
            repository: self.repository.clone(),
            branch: self.branch.clone(),
            reason,
        }
    }

    /// Takes out of a text what the URL says about who asks, as it is in the URL and by itself.
    fn redacted(&self, text: String) -> String {
        let password = self.url.password().filter(|password| !password.is_empty());
        let is_token = |user: &&str| is_http(&self.url) && user.len() >= MIN_TOKEN_BYTES;
        let token = self.url.user().filter(is_token);
        let url = self.url.to_bstring().to_string();
        // Percent-encoded there.
        let in_url = url.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
        let in_url = in_url
            .filter(|_| password.or(token).is_some())
            .map(|(who, _)| who);
        let secrets = [in_url, password, token].into_iter().flatten();
        secrets.fold(text, |text, secret| text.replace(secret, "…"))
    }
}

fn is_http(url: &gix::Url) -> bool {
    matches!(url.scheme, gix::url::Scheme::Http | gix::url::Scheme::Https)
}

fn is_manifest(name: &str) -> bool {
    [".yaml", ".yml", ".json"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// Reads `--gitops-path`: elements joined by `/`, without `.`; None if it leads out of the repository.
fn inner_path(path: &str) -> Option<String> {
    let mut elements = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(element) => elements.push(element.to_str()?),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(elements.join("/"))
}
