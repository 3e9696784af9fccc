//! The cluster follows a Git branch: what is committed is applied, what disappears is removed, what is broken changes
//! nothing and is reported, and a node that dies is stood in for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, needs_hosts, on_path};

/// A bare repository and a work tree that pushes to it. Both lie in the cluster's directory.
struct Repository {
    bare: PathBuf,
    tree: PathBuf,
}

impl Repository {
    fn new(cluster: &Cluster) -> Self {
        let repository = Self {
            bare: cluster.scratch("repository.git"),
            tree: cluster.scratch("tree"),
        };
        let (bare, tree) = (
            repository.bare.to_str().unwrap(),
            repository.tree.to_str().unwrap(),
        );
        git(Path::new("/"), &["init", "-q", "--bare", "-b", "main", bare]);
        git(Path::new("/"), &["init", "-q", "-b", "main", tree]);
        repository
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.tree.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.tree.join(file)).unwrap();
    }

    /// Commits everything, pushes it, and returns the commit.
    fn push(&self) -> String {
        git(&self.tree, &["add", "-A"]);
        git(&self.tree, &["commit", "-q", "--allow-empty", "-m", "change"]);
        git(&self.tree, &["push", "-q", self.bare.to_str().unwrap(), "main"]);
        git(&self.tree, &["rev-parse", "HEAD"]).trim().to_owned()
    }
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(directory)
        .args(["-c", "user.name=test", "-c", "user.email=test@example.test"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn namespace(name: &str, value: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{value: \"{value}\"}}}}}}\n"
    )
}

/// The value that a namespace has on a host; None if it is not there.
fn value(cluster: &Cluster, host: usize, name: &str) -> Option<String> {
    let object = cluster.get(host, &["namespace", name]);
    Some(object.pointer("/metadata/labels/value")?.as_str()?.to_owned())
}

#[track_caller]
fn wait_value(cluster: &Cluster, host: usize, name: &str, expected: Option<&str>, deadline: Duration) {
    cluster.wait_for(
        &format!("namespace {name} to be {expected:?} on host {host}"),
        deadline,
        |cluster| {
            let seen = value(cluster, host, name);
            if seen.as_deref() == expected {
                Ok(())
            } else {
                Err(seen)
            }
        },
    );
}

fn log(cluster: &Cluster, host: usize) -> String {
    std::fs::read_to_string(cluster.log(host)).unwrap()
}

/// Waits until one of the hosts reports what kept it from following, in an Event or its log.
#[track_caller]
fn wait_reported(cluster: &Cluster, hosts: &[usize], words: &[&str]) {
    cluster.wait_for(
        &format!("a report with {words:?}"),
        Duration::from_secs(10),
        |cluster| {
            let events = cluster
                .psctl(hosts[0], &["get", "events", "-A", "-o", "json"])
                .stdout;
            let texts: Vec<String> = hosts
                .iter()
                .map(|host| log(cluster, *host))
                .chain([events])
                .collect();
            let told = texts
                .iter()
                .flat_map(|text| text.lines())
                .any(|line| words.iter().all(|word| line.contains(word)));
            if told { Ok(()) } else { Err("not reported") }
        },
    );
}

const SOON: Duration = Duration::from_secs(10);

/// Starts hosts 1 to `count`, all following a repository in its folder `cluster`.
fn following(count: usize) -> (Cluster, Repository) {
    assert!(on_path("git"), "git is needed");
    let cluster = Cluster::hosts(count);
    let repository = Repository::new(&cluster);
    repository.write("cluster/first.yaml", &namespace("first", "1"));
    repository.push();
    let flags = [
        format!("--gitops-repo={}", repository.bare.display()),
        "--gitops-path=cluster".into(),
        "--gitops-interval=1s".into(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    cluster.start(1, &flags);
    cluster.wait_healthy(1);
    for host in 2..=count {
        cluster.join(host, &flags);
    }
    for host in 2..=count {
        cluster.wait_healthy(host);
    }
    cluster.wait_nodes(count);
    (cluster, repository)
}

#[test]
fn the_cluster_follows_the_branch() {
    needs_hosts!();
    let (cluster, repository) = following(2);
    for host in [1, 2] {
        wait_value(&cluster, host, "first", Some("1"), SOON);
    }
    // A change, files in folders and of all three endings, one outside of the path.
    cluster.apply(1, &namespace("by-hand", "1"));
    repository.write("cluster/first.yaml", &namespace("first", "2"));
    repository.write(
        "cluster/more/second.yml",
        &(namespace("second", "1") + "---\n" + &namespace("third", "1")),
    );
    repository.write(
        "cluster/fourth.json",
        r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "fourth", "labels": {"value": "1"}}}"#,
    );
    repository.write("cluster/README.md", "not a manifest: [");
    repository.write("elsewhere/fifth.yaml", &namespace("fifth", "1"));
    repository.push();
    for (name, expected) in [("first", "2"), ("second", "1"), ("third", "1"), ("fourth", "1")] {
        wait_value(&cluster, 2, name, Some(expected), SOON);
    }
    assert_eq!(value(&cluster, 1, "fifth"), None, "a file outside of the path");

    // One object of a file, and a whole file, disappear; what Git did not apply stays.
    repository.write("cluster/more/second.yml", &namespace("second", "1"));
    repository.remove("cluster/fourth.json");
    repository.push();
    for name in ["third", "fourth"] {
        wait_value(&cluster, 1, name, None, SOON);
    }
    assert_eq!(value(&cluster, 1, "second").as_deref(), Some("1"));
    assert_eq!(value(&cluster, 1, "by-hand").as_deref(), Some("1"));
    cluster
        .psctl(1, &["get", "namespace", "default"])
        .expect("default");

    // What was changed by hand is set back, what the branch does not name stays.
    cluster.apply(
        1,
        "{apiVersion: v1, kind: Namespace, metadata: {name: first, labels: {value: other, more: mine}}}",
    );
    repository.write("cluster/fifth.yaml", &namespace("fifth", "1"));
    repository.push();
    wait_value(&cluster, 1, "fifth", Some("1"), SOON);
    wait_value(&cluster, 1, "first", Some("2"), SOON);
    let first = cluster.get(1, &["namespace", "first"]);
    assert_eq!(crate::cluster::text(&first, "/metadata/labels/more"), "mine");

    // What is kept without an effect is told.
    repository.write(
        "cluster/odd.yaml",
        "{apiVersion: v1, kind: Service, metadata: {name: odd}, spec: {colour: red, ports: [{port: 80}]}}\n",
    );
    repository.push();
    wait_reported(&cluster, &[1, 2], &["AppliedWithWarnings"]);
    wait_reported(&cluster, &[1, 2], &["spec.colour"]);
}

#[test]
fn what_is_broken_changes_nothing_and_is_reported() {
    needs_hosts!();
    let (cluster, repository) = following(2);
    wait_value(&cluster, 1, "first", Some("1"), SOON);

    // A manifest that does not parse, beside a change and a removal that are fine.
    repository.write("cluster/second.yaml", &namespace("second", "1"));
    repository.write("cluster/broken.yaml", "apiVersion: v1\nkind: [\n");
    repository.remove("cluster/first.yaml");
    let commit = repository.push();
    wait_reported(&cluster, &[1, 2], &["broken.yaml", &commit]);
    assert_eq!(
        value(&cluster, 1, "first").as_deref(),
        Some("1"),
        "nothing is pruned"
    );
    assert_eq!(value(&cluster, 1, "second"), None, "nothing is applied");

    // One that parses and is not valid: the report names the field.
    repository.write(
        "cluster/broken.yaml",
        "{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {ports: [{port: 99999}]}}\n",
    );
    let commit = repository.push();
    wait_reported(&cluster, &[1, 2], &["spec.ports[0].port", "99999", &commit]);
    assert_eq!(
        value(&cluster, 1, "first").as_deref(),
        Some("1"),
        "nothing is pruned"
    );
    assert_eq!(value(&cluster, 1, "second"), None, "nothing is applied");

    // Mended: everything happens that was held back. Failures make it look less often, hence the longer wait.
    repository.write("cluster/broken.yaml", &namespace("third", "1"));
    repository.push();
    for host in [1, 2] {
        wait_value(&cluster, host, "third", Some("1"), Duration::from_secs(30));
        wait_value(&cluster, host, "second", Some("1"), SOON);
        wait_value(&cluster, host, "first", None, SOON);
    }
}

#[test]
fn a_missing_path_does_not_empty_the_cluster() {
    needs_hosts!();
    let (cluster, repository) = following(1);
    wait_value(&cluster, 1, "first", Some("1"), SOON);
    git(&repository.tree, &["mv", "cluster", "moved"]);
    repository.push();
    wait_reported(&cluster, &[1], &["no directory or manifest", "cluster"]);
    assert_eq!(
        value(&cluster, 1, "first").as_deref(),
        Some("1"),
        "nothing is pruned"
    );
    git(&repository.tree, &["mv", "moved", "cluster"]);
    repository.write("cluster/first.yaml", &namespace("first", "2"));
    repository.push();
    wait_value(&cluster, 1, "first", Some("2"), Duration::from_secs(15));
}

#[test]
fn one_node_does_the_work_and_another_goes_on_when_it_dies() {
    needs_hosts!();
    let (cluster, repository) = following(3);
    wait_value(&cluster, 1, "first", Some("1"), SOON);
    let mut alive = vec![1, 2, 3];
    for (round, how) in ["kill -9", "power off"].into_iter().enumerate() {
        let mark = format!("round-{round}");
        repository.write("cluster/first.yaml", &namespace("first", &mark));
        let commit = repository.push();
        wait_value(&cluster, alive[0], "first", Some(&mark), Duration::from_secs(30));
        let workers: Vec<usize> = cluster.wait_for("the log of who did it", SOON, |cluster| {
            let told: Vec<usize> = alive
                .iter()
                .copied()
                .filter(|host| {
                    log(cluster, *host)
                        .lines()
                        .any(|line| line.contains("synchronised with Git") && line.contains(&commit))
                })
                .collect();
            if told.is_empty() { Err(told) } else { Ok(told) }
        });
        assert_eq!(workers.len(), 1, "one node does the work: {workers:?}");
        let worker = workers[0];
        match how {
            "kill -9" => cluster.kill_agent(worker),
            _ => cluster.crash(worker),
        }
        alive.retain(|host| *host != worker);
        let mark = format!("after-{round}");
        repository.write("cluster/first.yaml", &namespace("first", &mark));
        repository.push();
        let start = std::time::Instant::now();
        wait_value(&cluster, alive[0], "first", Some(&mark), Duration::from_secs(30));
        eprintln!(
            "{how} of the node that follows Git -> the next commit is applied: {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_broken_commit_does_not_delay_the_one_that_mends_it() {
    needs_hosts!();
    let (cluster, repository) = following(1);
    wait_value(&cluster, 1, "first", Some("1"), SOON);
    for round in 0..2 {
        repository.write("cluster/broken.yaml", &format!("kind: [ # {round}\n"));
        let commit = repository.push();
        wait_reported(&cluster, &[1], &["broken.yaml", &commit]);
        repository.remove("cluster/broken.yaml");
        repository.write(
            "cluster/first.yaml",
            &namespace("first", &format!("mended-{round}")),
        );
        repository.push();
        // --gitops-interval is 1 s.
        wait_value(
            &cluster,
            1,
            "first",
            Some(&format!("mended-{round}")),
            Duration::from_secs(3),
        );
    }
}
