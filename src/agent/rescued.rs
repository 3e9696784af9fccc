//! Files for people in `<data-dir>/rescued`: objects with edits that the store could not keep, each as a manifest that can
//! be applied again. Who has looked at a file removes it; nothing here does.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reconcilers::ports::{Clock, EventKind, EventRecord, EventSink};
use schemas::{manifest, time, with_causes};
use store::{Lost, Rescued, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::api::{ApiState, Events};
use crate::backup::{self, Identity};
use crate::gossip::{self, write_private_file};

/// The folder in the data directory.
const FOLDER: &str = "rescued";
/// Files that the folder takes: more are nothing that a person looks at one by one. What is beyond waits in the store.
const MAX_FILES: usize = 1000;
/// Bytes that the folder takes beyond which no file is added: some hundred of the largest objects.
const MAX_BYTES: u64 = 64 << 20;
/// How often the folder is looked at: for the node's status, and whether there is room again.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// The longest name of a file is 255 bytes, while it is written with `.new` behind it.
const MAX_NAME_BYTES: usize = 200;
/// Digits of the hash in the name of a file.
const HASH_DIGITS: usize = 8;

/// Why an object was not written to a file. It is still in the store.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(
        "{path} holds {files} files of {bytes} bytes: look at them and remove them, there are more in the store"
    )]
    Full { path: PathBuf, files: usize, bytes: u64 },
    #[error("cannot use {path}")]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot seal {name}")]
    Seal { name: String, source: io::Error },
    #[error(transparent)]
    File(#[from] gossip::Error),
    #[error(transparent)]
    Store(#[from] store::CommitError),
    #[error("a thread ended early")]
    Thread(#[from] tokio::task::JoinError),
}

/// Takes what was rescued out of the store.
pub(super) struct Export {
    store: Store,
    clock: Arc<dyn Clock>,
    events: Arc<Events>,
    folder: Folder,
    /// Told how many objects nobody has looked at.
    count: watch::Sender<u32>,
}

/// Where the files are, and what is said in them.
#[derive(Clone)]
struct Folder {
    path: PathBuf,
    /// Name of this node.
    node: String,
    /// What confidential objects are sealed for.
    identity: Identity,
}

impl Export {
    pub(super) fn new(state: &ApiState, data_dir: &Path, count: watch::Sender<u32>) -> Self {
        Self {
            store: state.store.clone(),
            clock: state.clock.clone(),
            events: state.events.clone(),
            folder: Folder {
                path: data_dir.join(FOLDER),
                node: state.backups.node_name.clone(),
                identity: state.backups.identity.clone(),
            },
            count,
        }
    }

    /// Runs until the agent stops. What fails is told once, and tried again.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let rescues = self.store.rescues();
        let mut told = String::new();
        loop {
            // Before the first look: what is rescued from now on is not slept over.
            let more = rescues.notified();
            let failed = self.export().await.err().map(|error| with_causes(&error));
            let failed = failed.unwrap_or_default();
            if !failed.is_empty() && failed != told {
                error!(error = failed, "what was rescued is not written to files");
            }
            told = failed;
            self.look().await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = more => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Writes all that waits. An object leaves the store when its file is there to stay.
    async fn export(&self) -> Result<(), ExportError> {
        for rescued in self.store.rescued() {
            let (folder, now) = (self.folder.clone(), self.clock.unix_seconds());
            let writing = rescued.clone();
            let path = tokio::task::spawn_blocking(move || folder.write(&writing, now)).await??;
            self.store.forget_rescued(&rescued.id).await?;
            let (key, by) = (&rescued.key, by(&rescued));
            warn!(%key, by, path = %path.display(), "an edit was rescued");
            self.events.event(EventRecord {
                key: key.clone(),
                uid: rescued.object.uid().to_owned(),
                kind: EventKind::Warning,
                reason: "Rescued",
                message: format!(
                    "the last change by {by} through node {} was not kept: {}; the object as it was is in {} on that node",
                    self.folder.node,
                    reason(rescued.why),
                    path.display(),
                ),
                component: "store",
            });
        }
        Ok(())
    }

    /// Tells how many objects wait for somebody to look at them.
    async fn look(&self) {
        let folder = self.folder.clone();
        let files = tokio::task::spawn_blocking(move || folder.held()).await;
        if let Ok(Ok((files, _))) = files {
            let waiting = files + self.store.rescued().len();
            let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
            self.count
                .send_if_modified(|count| std::mem::replace(count, waiting) != waiting);
        }
    }
}

/// Names who made the last edit.
fn by(rescued: &Rescued) -> String {
    match rescued.user.as_str() {
        "" => rescued.manager.clone(),
        user => format!("{user} ({})", rescued.manager),
    }
}

fn reason(why: Lost) -> &'static str {
    match why {
        Lost::Deleted => "the object, or its namespace, was deleted on another node that had not seen it",
        Lost::Replaced => "another object of this name was created on a node that did not know of it",
        Lost::Stale => "this node was away so long that the others may have deleted the object meanwhile",
        Lost::SquashedAway => {
            "the others compacted the object's history while this node was away, perhaps without it"
        }
    }
}

impl Folder {
    /// Counts files and bytes.
    fn held(&self) -> Result<(usize, u64), ExportError> {
        let failed = |source| ExportError::Folder {
            path: self.path.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
            entries => entries.map_err(failed)?,
        };
        let (mut files, mut bytes) = (0, 0);
        for entry in entries {
            // One that was removed meanwhile counts no more.
            if let Ok(metadata) = entry.map_err(failed)?.metadata() {
                files += 1;
                bytes += metadata.len();
            }
        }
        Ok((files, bytes))
    }

    /// Writes one object. Again, it is the same file. Blocks.
    fn write(&self, rescued: &Rescued, unix_seconds: i64) -> Result<PathBuf, ExportError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(|source| ExportError::Folder {
                path: self.path.clone(),
                source,
            })?;
        let (files, bytes) = self.held()?;
        if files >= MAX_FILES || bytes >= MAX_BYTES {
            return Err(ExportError::Full {
                path: self.path.clone(),
                files,
                bytes,
            });
        }
        let is_sealed = rescued.key.kind.row().confidential;
        let name = name_of(rescued, is_sealed);
        let text = self.text(rescued, &name, unix_seconds);
        let path = self.path.join(&name);
        if is_sealed {
            let sealed = self.identity.seal(text.as_bytes());
            let sealed = sealed.map_err(|source| ExportError::Seal { name, source })?;
            write_private_file(&path, &sealed)?;
        } else {
            write_private_file(&path, &text)?;
        }
        Ok(path)
    }

    fn text(&self, rescued: &Rescued, name: &str, unix_seconds: i64) -> String {
        let key = &rescued.key;
        let place = match key.namespace.as_str() {
            "" => String::new(),
            namespace => format!(" in namespace {namespace}"),
        };
        let open = match name.strip_suffix(SEALED) {
            Some(_) => {
                format!("age -d -i KEY {name} | psctl apply -f -  (KEY: podman-swarm-agent backup-identity)")
            }
            None => format!("psctl apply -f {name}"),
        };
        let said = [
            format!("{} {}{place}, as node {} had it.", key.kind, key.name, self.node),
            format!(
                "Its last change through this node was not kept: {}.",
                reason(rescued.why)
            ),
            format!(
                "Made by {}, {}; rescued {}.",
                by(rescued),
                time::to_rfc3339(rescued.edited_unix_seconds),
                time::to_rfc3339(unix_seconds),
            ),
            format!("It had the uid {}.", rescued.object.uid()),
            format!("Compare it with what is there now. To apply it again: {open}"),
        ];
        // Names of users and managers are any text.
        let comments = said.map(|line| format!("# {}\n", line.escape_debug()));
        comments.concat() + &manifest::to_yaml(&backup::apart(&rescued.object))
    }
}

const PLAIN: &str = ".yaml";
const SEALED: &str = ".yaml.age";

/// `<kind>.<namespace>.<name>.<hash>.yaml`, without what a file name cannot have.
fn name_of(rescued: &Rescued, is_sealed: bool) -> String {
    let key = &rescued.key;
    let parts = [key.kind.row().singular, key.namespace.as_str(), key.name.as_str()];
    let named: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '.';
    let name = named.join(".");
    let name = name
        .chars()
        .map(|letter| if allowed(letter) { letter } else { '_' });
    let name: String = name.take(MAX_NAME_BYTES).collect();
    let hash: String = rescued.id.hash().chars().take(HASH_DIGITS).collect();
    format!("{name}.{hash}{}", if is_sealed { SEALED } else { PLAIN })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use schemas::{Kind, Object, ObjectKey};
    use store::{Author, Exchange, MemoryDisk, NodeId, OpenOptions, Precondition, Via, WriteError};

    use super::super::clock::SystemClock;
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn open(node: &str) -> Store {
        let options = OpenOptions {
            cluster_id: "test".into(),
            node: NodeId(node.into()),
            seal_key: [7; 32],
        };
        Store::open_in_memory(MemoryDisk::default(), options).unwrap()
    }

    fn author() -> Author {
        Author {
            manager: "psctl".into(),
            user: "eve\n# not a comment".into(),
            via: Via::Apply,
            unix_seconds: NOW,
        }
    }

    async fn exchange(from: &Store, to: &Store) {
        let (a, b) = (NodeId("a".into()), NodeId("b".into()));
        let mut next = from.begin_exchange(&b);
        let mut sides = [(to, &a), (from, &b)].into_iter().cycle();
        while let Exchange::Send(frame) = next {
            let (receiver, sender) = sides.next().unwrap();
            next = receiver.receive(sender, &frame).await.unwrap();
        }
    }

    /// Makes an object that was edited on the second store and deleted on the first.
    async fn lose(a: &Store, b: &Store, key: &ObjectKey) {
        let mut object = Object::new(key);
        object.set(&["metadata", "labels", "app"], "web");
        a.create(object, author()).await.unwrap();
        exchange(a, b).await;
        a.remove(key, &Precondition::default(), author()).await.unwrap();
        b.update::<WriteError>(key, &Precondition::default(), author(), |object| {
            let mut object = object.clone();
            object.set(&["metadata", "labels", "edited"], "yes");
            Ok(object)
        })
        .await
        .unwrap();
        exchange(a, b).await;
        assert!(b.get(key).is_none());
    }

    fn export(store: &Store, data_dir: &Path) -> Export {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let node = NodeId("b".into());
        Export {
            store: store.clone(),
            clock: clock.clone(),
            events: Arc::new(Events::new(store.clone(), node, "node-b", clock)),
            folder: Folder {
                path: data_dir.join(FOLDER),
                node: "node-b".into(),
                identity: Identity::of_cluster_key(&[1; 32]),
            },
            count: watch::Sender::new(0),
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_rescued_object_becomes_a_private_file_that_can_be_applied() {
        let data_dir = tempfile::tempdir().unwrap();
        let (a, b) = (open("a"), open("b"));
        let key = ObjectKey::new(Kind::Service, "shop", "web");
        lose(&a, &b, &key).await;
        let export = export(&b, data_dir.path());
        let count = export.count.subscribe();
        let folder = data_dir.path().join(FOLDER);
        export.look().await;
        assert_eq!(*count.borrow(), 1, "it waits");
        export.export().await.unwrap();
        export.look().await;
        assert_eq!(*count.borrow(), 1);
        assert_eq!(b.rescued(), []);
        let [name] = names(&folder).try_into().unwrap();
        assert!(
            name.starts_with("service.shop.web.") && name.ends_with(".yaml"),
            "{name}"
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = folder.join(&name);
        assert_eq!((mode(&folder), mode(&path)), (0o700, 0o600));
        let text = fs::read_to_string(&path).unwrap();
        for said in [
            "deleted on another node",
            "eve",
            "(psctl)",
            "2027-01-15T08:00:00Z",
            &format!("psctl apply -f {name}"),
        ] {
            assert!(text.contains(said), "{said} is not in {text}");
        }
        assert!(!text.contains("\n# not a comment"), "{text}");
        let [object] = manifest::parse(text.as_bytes()).unwrap().try_into().unwrap();
        assert_eq!(object.str_at("/metadata/labels/edited"), "yes");
        assert_eq!(object.uid(), "");
        b.apply(object, author(), false).await.unwrap();
        assert!(b.get(&key).is_some());
        let events = b.list(Kind::Event, Some("shop")).items;
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].object.str_at("/reason"), "Rescued");
        assert!(events[0].object.str_at("/message").contains(&name));

        fs::remove_file(&path).unwrap();
        export.look().await;
        assert_eq!(*count.borrow(), 0, "somebody looked at it");
    }

    #[tokio::test]
    async fn what_is_confidential_is_sealed() {
        let data_dir = tempfile::tempdir().unwrap();
        let (a, b) = (open("a"), open("b"));
        lose(&a, &b, &ObjectKey::cluster(Kind::ApiToken, "t")).await;
        let export = export(&b, data_dir.path());
        export.export().await.unwrap();
        let folder = data_dir.path().join(FOLDER);
        let [name] = names(&folder).try_into().unwrap();
        assert!(name.ends_with(".yaml.age"), "{name}");
        let sealed = fs::read(folder.join(name)).unwrap();
        let text = export.folder.identity.open(&sealed).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("edited: "), "{text}");
    }

    #[tokio::test]
    async fn a_full_folder_leaves_the_rest_in_the_store() {
        let data_dir = tempfile::tempdir().unwrap();
        let (a, b) = (open("a"), open("b"));
        let export = export(&b, data_dir.path());
        let folder = data_dir.path().join(FOLDER);
        fs::create_dir(&folder).unwrap();
        for number in 1..MAX_FILES {
            fs::write(folder.join(format!("{number}.yaml")), "").unwrap();
        }
        for name in ["one", "two"] {
            lose(&a, &b, &ObjectKey::new(Kind::Service, "shop", name)).await;
        }
        let error = export.export().await.unwrap_err();
        assert!(
            matches!(error, ExportError::Full { files: MAX_FILES, .. }),
            "{error}"
        );
        assert_eq!((b.rescued().len(), names(&folder).len()), (1, MAX_FILES));
        let count = export.count.subscribe();
        export.look().await;
        assert_eq!(*count.borrow(), 1 + MAX_FILES as u32);
        fs::remove_file(folder.join("1.yaml")).unwrap();
        export.export().await.unwrap();
        assert_eq!((b.rescued().len(), names(&folder).len()), (0, MAX_FILES));
    }
}
