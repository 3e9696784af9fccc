//! The tables of the documentation are those of the code.

use std::fs;

const BEGIN: &str =
    "<!-- From the tables of the code; `WRITE_DOCS=1 cargo test documentation` writes it. -->\n\n";
const END: &str = "\n<!-- end -->\n";

#[test]
fn compatibility_says_what_the_tables_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/kubernetes-compatibility.md");
    let page = fs::read_to_string(path).unwrap();
    let (before, rest) = page
        .split_once(BEGIN)
        .expect("the page has a place for the tables");
    let (written, after) = rest.split_once(END).expect("the place for the tables has an end");
    let tables = schemas::compatibility::tables();
    if std::env::var_os("WRITE_DOCS").is_some() {
        fs::write(path, format!("{before}{BEGIN}{tables}{END}{after}")).unwrap();
        return;
    }
    assert!(
        written == tables,
        "docs/kubernetes-compatibility.md is not current: run WRITE_DOCS=1 cargo test documentation"
    );
}
