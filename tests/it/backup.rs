//! Backups as a user meets them: made by themselves and by hand, opened with the standard tool, and brought back into a
//! cluster that has nothing left but the file and its key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::cluster::{Cluster, needs_hosts, on_path, program, text};
use crate::stories::{HELLO, wait_ready, web};

#[test]
fn a_cluster_that_lost_everything_comes_back_from_its_backup() {
    needs_hosts!();
    let cluster = Cluster::with_flags(1, &["--backup-interval=1s", "--backup-retention=2"]);
    let lone = |note: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: lone, labels: {{app: lone}}, annotations: {{note: {note}}}}},
              spec: {{terminationGracePeriodSeconds: 2, containers: [{{name: web, image: \"{HELLO}\"}}]}}}}"
        )
    };
    cluster.apply(1, &lone("old"));
    cluster.apply(1, &web(2, "1", HELLO));
    wait_ready(&cluster, 1, "app=web", 2);
    wait_ready(&cluster, 1, "app=lone", 1);
    let newest = |cluster: &Cluster| {
        let folder = cluster.data(1).join("backups");
        let mut files: Vec<_> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        (files.len(), files.pop())
    };
    cluster.wait_for(
        "a backup with the deployment",
        Duration::from_secs(20),
        |cluster| {
            let (count, path) = newest(cluster);
            let path = path.ok_or(count)?;
            // It may be removed for a newer one at any time.
            let content = fs::read_to_string(&path).map_err(|_| count)?;
            let mode = fs::metadata(&path).map_err(|_| count)?.permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            // Two stay; a third is there while the oldest goes.
            if count <= 3 && content.contains("kind: Deployment") && content.contains("kind: BackupEnd") {
                Ok(())
            } else {
                Err(count)
            }
        },
    );

    // By hand, sealed; what is in it is what is in the open one.
    let file = cluster.scratch("cluster.age");
    let file = file.to_str().unwrap();
    cluster
        .psctl(1, &["backup", "-o", file, "--encrypt"])
        .expect("psctl backup");
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let plain = cluster
        .psctl(1, &["backup", "-o", "-"])
        .expect("psctl backup -o -");
    let agent = program("podman-swarm-agent");
    let agent = agent.to_str().unwrap();
    let data = format!("--data-dir={}", cluster.data(1).display());
    let identity = cluster
        .exec(1, &[agent, "backup-identity", &data])
        .expect("backup-identity");
    let identity = cluster.write("identity.txt", &identity);
    if on_path("age") {
        let opened = cluster
            .exec(1, &["age", "-d", "-i", &identity, file])
            .expect("age -d");
        // They differ in the time of their making, and so in their digest.
        let body = |text: &str| {
            let begin = text.find("\n---\n").unwrap();
            let end = text.rfind("\n---\n").unwrap();
            text[begin..end].to_owned()
        };
        assert_eq!(body(&opened), body(&plain));
    } else {
        eprintln!("skipped: age is not installed");
    }
    cluster
        .exec(1, &[agent, "check", &data])
        .refuses(2, &["an agent runs", "stop it first"]);

    // The machine is lost with its disk; what was put aside is the backup and the key.
    let key = cluster.write("encryption.key", &cluster.secret(1, "encryption.key"));
    cluster.crash(1);
    fs::remove_dir_all(cluster.data(1)).unwrap();
    cluster.boot(1);
    cluster.start(1, &[]);
    cluster.wait_healthy(1);
    cluster
        .psctl(1, &["restore", "-f", file, "--yes"])
        .refuses(1, &["another key", "--encryption-key"]);
    let with_key = |more: &[&str]| {
        let arguments = ["restore", "-f", file, "--encryption-key", &key];
        cluster.psctl(1, &[arguments.as_slice(), more].concat())
    };
    let planned = with_key(&[]);
    planned.refuses(2, &["nothing was changed", "--yes"]);
    assert!(
        planned.stdout.contains("create    Deployment default/web"),
        "{}",
        planned.stdout
    );
    let done = with_key(&["--yes"]).expect("psctl restore");
    assert!(done.contains("created   Deployment default/web"), "{done}");
    wait_ready(&cluster, 1, "app=web", 2);
    wait_ready(&cluster, 1, "app=lone", 1);
    let again = with_key(&["--yes"]).expect("psctl restore again");
    assert!(again.ends_with("there is nothing to do\n"), "{again}");

    // What says something else is made anew when that is asked for, a pod after its node has stopped it.
    let pod = |cluster: &Cluster| cluster.get(1, &["pod", "lone"]);
    let before = text(&pod(&cluster), "/metadata/uid");
    cluster.apply(1, &lone("new"));
    let skipped = with_key(&["--yes"]).expect("psctl restore beside another pod");
    assert!(skipped.contains("skip      Pod default/lone"), "{skipped}");
    let replaced = with_key(&["--yes", "--replace"]).expect("psctl restore --replace");
    assert!(replaced.contains("replaced  Pod default/lone"), "{replaced}");
    wait_ready(&cluster, 1, "app=lone", 1);
    assert_ne!(text(&pod(&cluster), "/metadata/uid"), before);
    assert_eq!(text(&pod(&cluster), "/metadata/annotations/note"), "old");

    // At rest, the directory can be verified.
    cluster.stop_agent(1);
    let healthy = cluster.exec(1, &[agent, "check", &data]).expect("check");
    assert!(healthy.contains("no problems"), "{healthy}");
    fs::set_permissions(
        cluster.data(1).join("encryption.key"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let sick = cluster.exec(1, &[agent, "check", &data]);
    assert_eq!(sick.code, Some(1), "{sick:?}");
    assert!(
        sick.stdout.contains("encryption.key") && sick.stdout.contains("chmod"),
        "{sick:?}"
    );
}
