//! `podman-swarm-agent check` and `backup-identity`: what can be said of a data directory without its agent. Only reads.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow, bail};
use store::{OpenOptions, Problem};

use super::backups::FOLDER;
use crate::backup::{self, Identity, is_backup_name};
use crate::gossip;

/// Something is wrong with the directory.
const PROBLEMS: u8 = 1;
/// Nothing can be said of it.
const NOT_CHECKED: u8 = 2;

/// What was looked at.
#[derive(Default)]
struct Findings {
    files: usize,
    objects: usize,
    tombstones: usize,
    backups: usize,
    problems: Vec<Problem>,
}

/// Verifies a data directory and prints what is wrong, with what to do: 0 nothing, 1 something, 2 it could not be checked.
pub fn check(data_dir: &Path) -> ExitCode {
    let found = match look(data_dir, SystemTime::now()) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(NOT_CHECKED);
        }
    };
    for problem in &found.problems {
        println!("problem: {}: {}", problem.place, problem.what);
        println!("  to do: {}", problem.remedy);
    }
    println!(
        "{}: {} files, {} objects, {} tombstones and {} backups were read, {}",
        data_dir.display(),
        found.files,
        found.objects,
        found.tombstones,
        found.backups,
        match found.problems.len() {
            0 => "no problems".to_owned(),
            1 => "1 problem".to_owned(),
            count => format!("{count} problems"),
        }
    );
    match found.problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(PROBLEMS),
    }
}

/// Prints the key of the cluster's backups, on stdout alone and nothing else.
pub fn print_backup_identity(data_dir: &Path) -> ExitCode {
    match gossip::backup_identity(data_dir) {
        Ok(identity) => {
            println!("{}", identity.to_text());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {:#}", anyhow!(error));
            ExitCode::FAILURE
        }
    }
}

fn look(data_dir: &Path, now: SystemTime) -> Result<Findings> {
    let shown = data_dir.display();
    if !data_dir.is_dir() {
        bail!("--data-dir: {shown} is no directory that can be read");
    }
    let _lock = lock(data_dir)?;
    if !gossip::has_identity(data_dir) && !data_dir.join("store").exists() {
        bail!("--data-dir: {shown} belongs to no cluster: it has neither cluster.json nor a store");
    }
    let files = gossip::inspect(data_dir, now).map_err(|error| anyhow!(error))?;
    let mut found = Findings {
        files: files.files,
        problems: files.problems,
        ..Findings::default()
    };
    if let (Some((cluster_id, node)), Some((seal_key, _))) = (files.member, &files.keys) {
        let options = OpenOptions {
            cluster_id,
            node,
            seal_key: *seal_key,
        };
        let store = store::check(&data_dir.join("store"), &options)
            .map_err(|error| anyhow!(error))
            .context("the store cannot be checked (it is copied to TMPDIR for that)")?;
        found.objects = store.objects.values().sum();
        found.tombstones = store.tombstones;
        found.problems.extend(store.problems);
    }
    check_backups(
        &data_dir.join(FOLDER),
        files.keys.as_ref().map(|(_, identity)| identity),
        &mut found,
    )?;
    Ok(found)
}

/// Holds the agent's own lock, so that none starts meanwhile.
fn lock(data_dir: &Path) -> Result<Option<File>> {
    let path = data_dir.join("lock");
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("--data-dir: cannot read {}", path.display()))?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => bail!(
            "--data-dir: an agent runs on {}: stop it first, a check needs the directory at rest",
            data_dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).context("--data-dir"),
    }
}

/// Opens and reads every backup.
fn check_backups(folder: &Path, identity: Option<&Identity>, found: &mut Findings) -> Result<()> {
    let reading = || format!("cannot read {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(reading)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.with_context(reading)?;
        if entry.file_name().to_str().is_some_and(is_backup_name) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    for path in paths {
        let shown = path.display().to_string();
        let mut problem = |what: String, remedy: &str| {
            found.problems.push(Problem {
                place: shown.clone(),
                what,
                remedy: remedy.to_owned(),
            });
        };
        let mode = fs::metadata(&path).with_context(reading)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            problem(
                format!("others may use it (mode {mode:04o})"),
                &format!("chmod go= {shown}"),
            );
        }
        let file = fs::read(&path).with_context(reading)?;
        let opened = match identity {
            Some(identity) => backup::open(file, identity),
            // Without a key there is a problem already.
            None if backup::is_sealed(&file) => continue,
            None => Ok(file),
        };
        let read = opened
            .and_then(backup::read)
            .and_then(|backup| (0..backup.count()).try_for_each(|index| backup.object(index).map(drop)));
        match read {
            Ok(()) => found.backups += 1,
            Err(error) => problem(error.to_string(), "it cannot be restored: remove it"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use schemas::{Kind, Object, ObjectKey};
    use store::{Author, Store, Via};

    use super::*;
    use crate::backup::{About, PeriodicFiles};

    fn config(data_dir: &Path) -> gossip::Config {
        gossip::Config {
            data_dir: data_dir.to_owned(),
            advertise: "127.0.0.1:7946".parse().unwrap(),
            node_name: "n1".to_owned(),
            host_name: "n1".to_owned(),
            join: Vec::new(),
            join_token: None,
            encryption_key: None,
            tls: None,
            tls_skip_verify: false,
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            restart_grace: Duration::ZERO,
        }
    }

    /// Opens the store as an agent does.
    async fn open(data_dir: &Path) -> Result<(gossip::Credentials, Store)> {
        super::super::data_dir::settle(data_dir)?;
        let credentials = gossip::bootstrap(&config(data_dir)).await?;
        let options = OpenOptions {
            cluster_id: credentials.cluster_id().to_owned(),
            node: credentials.node().clone(),
            seal_key: credentials.seal_key(),
        };
        let store = Store::open(&data_dir.join("store"), options)?;
        Ok((credentials, store))
    }

    /// A data directory as an agent leaves it, with a sealed backup.
    async fn made(data_dir: &Path) {
        fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700)).unwrap();
        let (credentials, store) = open(data_dir).await.unwrap();
        let author = Author {
            manager: "test".to_owned(),
            user: String::new(),
            via: Via::Api,
            unix_seconds: 0,
        };
        let namespace = Object::new(&ObjectKey::cluster(Kind::Namespace, "shop"));
        store.create(namespace, author).await.unwrap();
        let about = About {
            cluster_id: credentials.cluster_id().to_owned(),
            node: "n1".to_owned(),
            version: "0".to_owned(),
            created: 1_800_000_000,
        };
        let identity = credentials.backup_identity();
        PeriodicFiles::new(data_dir.join(FOLDER), 1)
            .write(about.created, true, |out| {
                backup::write(&backup::snapshot(&store), &about, Some(&identity), out).map(drop)
            })
            .unwrap();
        store.close().await;
        drop(store);
        at_rest(data_dir).await;
    }

    /// The store's thread holds its lock until it has ended.
    async fn at_rest(data_dir: &Path) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while look(data_dir, SystemTime::now()).is_err() {
            assert!(
                Instant::now() < deadline,
                "{:?}",
                look(data_dir, SystemTime::now()).err()
            );
            tokio::task::yield_now().await;
        }
    }

    fn problems(data_dir: &Path) -> Vec<Problem> {
        look(data_dir, SystemTime::now()).unwrap().problems
    }

    #[tokio::test]
    async fn a_directory_at_rest_is_healthy_and_what_is_wrong_with_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path();
        made(data_dir).await;
        let found = look(data_dir, SystemTime::now()).unwrap();
        assert_eq!(found.problems, []);
        // cluster.json, encryption.key, ca.crt, ca.key, join.token, node.crt, node.key.
        assert_eq!((found.files, found.objects, found.backups), (7, 1, 1));
        let identity = gossip::backup_identity(data_dir).unwrap();
        assert!(identity.to_text().parse::<Identity>().is_ok());

        let saved = |name: &str| fs::read(data_dir.join(name)).unwrap();
        let backup_file = "backups/backup-20270115T080000Z.yaml.age";
        let other_key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        for (name, spoiled, expected) in [
            ("cluster.json", "{", "cluster.json: is damaged"),
            ("encryption.key", "short", "encryption.key: is damaged"),
            ("encryption.key", other_key, "another key"),
            ("node.key", "none", "node.key: is damaged"),
            ("ca.crt", "none", "ca.crt: is damaged"),
            ("join.token", "none", "join.token: is damaged"),
            (backup_file, "apiVersion: v1", "no backup"),
        ] {
            let content = saved(name);
            fs::write(data_dir.join(name), spoiled).unwrap();
            let found = problems(data_dir);
            let told = found
                .iter()
                .map(|problem| format!("{}: {}", problem.place, problem.what));
            let told: Vec<String> = told.collect();
            assert!(
                told.iter().any(|line| line.contains(expected)),
                "{name}: {told:?}"
            );
            assert!(found.iter().all(|problem| !problem.remedy.is_empty()));
            fs::write(data_dir.join(name), content).unwrap();
        }
        fs::set_permissions(data_dir.join("node.key"), fs::Permissions::from_mode(0o644)).unwrap();
        let found = problems(data_dir);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].what.contains("0644") && found[0].remedy.contains("chmod"),
            "{found:?}"
        );
        let century = SystemTime::now() + Duration::from_secs(100 * 366 * 86_400);
        let expired = look(data_dir, century).unwrap().problems;
        assert!(
            expired
                .iter()
                .any(|problem| problem.what.contains("time is over")),
            "{expired:?}"
        );
    }

    #[tokio::test]
    async fn without_its_key_a_directory_is_refused_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path();
        made(data_dir).await;
        let listing = || {
            let entries = fs::read_dir(data_dir).unwrap().map(Result::unwrap);
            let mut all: Vec<_> = entries
                .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap_or_default()))
                .collect();
            all.sort();
            all
        };
        let refused = async || format!("{:#}", open(data_dir).await.err().expect("it opened"));
        let path = data_dir.join("encryption.key");
        let key = fs::read(&path).unwrap();

        fs::remove_file(&path).unwrap();
        let before = listing();
        let error = refused().await;
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert_eq!(listing(), before);

        fs::write(&path, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
        let before = listing();
        let error = refused().await;
        for word in ["another encryption key", "encryption.key: put that one back"] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(listing(), before);
        assert_eq!(fs::read_dir(data_dir.join(FOLDER)).unwrap().count(), 1);

        fs::write(&path, key).unwrap();
        at_rest(data_dir).await;
        let (_, store) = open(data_dir).await.unwrap();
        assert!(store.get(&ObjectKey::cluster(Kind::Namespace, "shop")).is_some());
    }

    #[tokio::test]
    async fn a_directory_that_an_agent_uses_or_nobody_is_not_checked() {
        let folder = tempfile::tempdir().unwrap();
        let error = |data_dir: &Path| format!("{:#}", look(data_dir, SystemTime::now()).err().unwrap());
        assert!(error(folder.path()).contains("belongs to no cluster"));
        assert!(error(&folder.path().join("absent")).contains("no directory"));
        let _lock = super::super::data_dir::take(folder.path()).unwrap();
        assert!(error(folder.path()).contains("an agent runs"));
    }
}
