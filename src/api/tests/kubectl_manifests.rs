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

/// The fields that comments of a manifest name, in their order.
fn noted(manifest: &str) -> Vec<&str> {
    let comments = manifest.lines().filter_map(|line| line.trim().strip_prefix("# "));
    comments
        .filter_map(|comment| comment.strip_prefix("warns: "))
        .collect()
}

/// The fields that kubectl warned about, in the order of the manifest's documents.
fn warned(said: &str) -> Vec<&str> {
    let warnings = said.lines().filter_map(|line| line.strip_prefix("Warning: "));
    warnings
        .map(|warning| warning.split_once(": ").map_or(warning, |(path, _)| path))
        .collect()
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
    // kubectl prints the same words once.
    expected.dedup();
    assert_eq!(seen, expected, "{file}: {said}");

    // The same again changes nothing, and differs in nothing.
    let (code, text, said) = kubectl.ran(&format!("apply -f {file}"), "").await;
    assert_eq!(code, Some(0), "{file}: {said}");
    // kubectl sends the selector of a budget each time, with Kubernetes as well.
    let is_same =
        |line: &&str| line.ends_with(" unchanged") || line.starts_with("poddisruptionbudget.policy/");
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
