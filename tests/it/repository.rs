//! Rules of the repository that no compiler checks: who may depend on whom, and how long files get.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cluster::ROOT;

/// A file that grows past this holds two things (docs/development.md).
const MAX_LINES: usize = 800;

fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for directory in [
        "src",
        "schemas/src",
        "store/src",
        "reconcilers/src",
        "tests",
        "benches",
        "examples",
    ] {
        collect(&Path::new(ROOT).join(directory), &mut files);
    }
    files
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}

/// Files that are compiled for tests alone.
fn is_for_tests(path: &Path) -> bool {
    let name = path
        .strip_prefix(ROOT)
        .unwrap_or(path)
        .to_string_lossy()
        .into_owned();
    ["test", "fakes", "fixture", "fuzzing", "sandbox", "suite"]
        .iter()
        .any(|part| name.contains(part))
        || in_folder(path, "benches")
}

fn in_folder(path: &Path, folder: &str) -> bool {
    path.starts_with(Path::new(ROOT).join(folder))
}

#[test]
fn files_say_what_they_are_and_stay_short() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("//!"),
            "{} does not begin with what it is for",
            path.display()
        );
        assert!(
            text.lines().count() <= MAX_LINES,
            "{} has more than {MAX_LINES} lines",
            path.display()
        );
    }
}

/// Adapters know ports, not each other; api and gitops know schemas and store; only the composition root sees all.
#[test]
fn modules_keep_to_their_direction() {
    let rules: &[(&str, &[&str])] = &[
        (
            "src/podman",
            &["network", "dns", "ingress", "gossip", "api", "gitops", "agent"],
        ),
        (
            "src/network",
            &["podman", "dns", "ingress", "gossip", "api", "gitops", "agent"],
        ),
        (
            "src/dns",
            &["podman", "network", "ingress", "gossip", "api", "gitops", "agent"],
        ),
        (
            "src/ingress",
            &["podman", "network", "dns", "gossip", "api", "gitops", "agent"],
        ),
        (
            "src/gossip",
            &["podman", "network", "dns", "ingress", "api", "gitops", "agent"],
        ),
        (
            "src/api",
            &["podman", "network", "dns", "ingress", "gossip", "gitops", "agent"],
        ),
        (
            "src/gitops",
            &["podman", "network", "dns", "ingress", "gossip", "agent"],
        ),
        (
            "src/cli",
            &[
                "podman", "network", "dns", "ingress", "gossip", "api", "gitops", "agent",
            ],
        ),
    ];
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for (folder, forbidden) in rules
            .iter()
            .filter(|(folder, _)| in_folder(&path, folder) && !is_for_tests(&path))
        {
            for module in *forbidden {
                let needle = format!("crate::{module}");
                assert!(
                    !text.contains(&needle),
                    "{}: {folder} must not know {module}",
                    path.display()
                );
            }
        }
    }
    for path in sources().iter().filter(|path| in_folder(path, "schemas/src")) {
        let text = fs::read_to_string(path).unwrap();
        for forbidden in [
            "tokio::",
            "std::fs",
            "std::net::Tcp",
            "SystemTime::now",
            "Instant::now",
        ] {
            assert!(
                !text.contains(forbidden),
                "{}: schemas is pure, without {forbidden}",
                path.display()
            );
        }
    }
    for path in sources().iter().filter(|path| in_folder(path, "reconcilers/src")) {
        let name = path
            .strip_prefix(Path::new(ROOT).join("reconcilers/src"))
            .unwrap();
        if name.starts_with("controller") || name.starts_with("controller.rs") {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        // A file that is the glue of one controller may hold it beside its planner.
        assert!(
            !text.contains("store::Store") || text.contains("Reconciler for ") || is_for_tests(path),
            "{}: only controllers know the store",
            path.display()
        );
    }
}

#[test]
fn errors_are_not_unwrapped_outside_tests() {
    for path in sources().iter().filter(|path| !is_for_tests(path)) {
        let text = fs::read_to_string(path).unwrap();
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (index, line) in product.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let bad = code.contains(".unwrap()") || code.contains("panic!(");
            assert!(!bad, "{}:{}: {line}", path.display(), index + 1);
        }
    }
}

/// Faults that cannot be put in any more would be found by nobody.
#[test]
fn the_faults_that_the_simulation_must_find_can_be_put_in() {
    let folder = Path::new(ROOT).join("store/mutations");
    let patches = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let patches = patches.filter(|path| path.extension().is_some_and(|ending| ending == "patch"));
    let mut count = 0;
    for patch in patches {
        let mut git = std::process::Command::new("git");
        let checked = git.args(["apply", "--check"]).arg(&patch).current_dir(ROOT);
        let output = checked.output().expect("git");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", patch.display());
        count += 1;
    }
    assert!(count > 7, "{count} patches");
}
