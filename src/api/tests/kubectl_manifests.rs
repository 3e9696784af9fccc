//! Manifests as people publish them (`tests/data/manifests`), applied by kubectl: no error, and a warning by name for each
//! field without effect. A comment `# warns: <path>` in a manifest tells the field that the next line writes.

use std::fs;
use std::path::PathBuf;

use super::kubectl::{Kubectl, Session};

fn manifests() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/manifests");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// What the comments of a manifest say that kubectl warns about.
fn noted(manifest: &str) -> Vec<String> {
    let mut noted = Vec::new();
    for document in manifest.split("\n---\n") {
        let value: serde_json::Value = serde_yaml::from_str(document).unwrap();
        let (kind, name) = (value["kind"].as_str(), value["metadata"]["name"].as_str());
        let comments = document.lines().filter_map(|line| line.trim().strip_prefix("# "));
        let fields = comments.filter_map(|comment| comment.strip_prefix("warns: "));
        noted.extend(fields.map(|field| format!("{} \"{}\": {field}", kind.unwrap(), name.unwrap())));
    }
    noted
}

/// The objects and fields that kubectl warned about, in the order of the manifest's documents.
fn warned(said: &str) -> Vec<String> {
    let warnings = said.lines().filter_map(|line| line.strip_prefix("Warning: "));
    let warnings = warnings.map(|warning| warning.splitn(3, ": ").take(2).collect::<Vec<_>>());
    warnings.map(|parts| parts.join(": ")).collect()
}

async fn check(kubectl: &Kubectl, file: &str) {
    let manifest = fs::read_to_string(file).unwrap();
    let (code, text, said) = kubectl.ran(&format!("apply -f {file}"), "").await;
    assert_eq!(code, Some(0), "{file}: {said}");
    let documents = manifest.split("\n---\n").count();
    assert_eq!(text.matches(" created\n").count(), documents, "{file}: {text}");
    // Of one document they come in any order.
    let (mut seen, mut expected) = (warned(&said), noted(&manifest));
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected, "{file}: {said}");

    // The same again changes nothing, and differs in nothing.
    let (code, text, said) = kubectl.ran(&format!("apply -f {file}"), "").await;
    assert_eq!(code, Some(0), "{file}: {said}");
    // kubectl sends the selector of a budget each time, and claims that have defaults, with Kubernetes as well.
    let is_same = |line: &&str| {
        let sent = ["poddisruptionbudget.policy/", "statefulset.apps/"];
        line.ends_with(" unchanged") || sent.iter().any(|kind| line.starts_with(kind))
    };
    assert_eq!(text.lines().filter(is_same).count(), documents, "{file}: {text}");
    let (code, text, said) = kubectl.ran(&format!("diff -f {file}"), "").await;
    assert_eq!(code, Some(0), "{file}: {text}{said}");
    kubectl.ok(&format!("delete -f {file}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_manifests_apply_and_each_field_without_effect_is_named() {
    let Some(session) = Session::start().await else {
        return;
    };
    for kubectl in session.oldest_and_newest() {
        for file in manifests() {
            check(&kubectl, file.to_str().unwrap()).await;
        }
    }
}
