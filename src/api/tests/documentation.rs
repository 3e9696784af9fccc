//! The page about compatibility is what its template and the tables of the code make of it.

use std::fs;

use schemas::compatibility::{Verbs, page};

use crate::api::discovery::{VERBS, subresource_verbs};

#[test]
fn compatibility_says_what_the_tables_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/kubernetes-compatibility.md");
    let made = page(&Verbs {
        of_kinds: &VERBS,
        behind: subresource_verbs,
    });
    if std::env::var_os("WRITE_DOCS").is_some() {
        fs::write(path, made).unwrap();
        return;
    }
    assert!(
        fs::read_to_string(path).unwrap() == made,
        "docs/kubernetes-compatibility.md is not current: change schemas/src/compatibility.md or the tables of the code, \
         and run WRITE_DOCS=1 cargo test -p podman-swarm documentation"
    );
}
