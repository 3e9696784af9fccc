//! Which kubectls are on this machine. Also a module of `tests/it`.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Every kubectl in the path, and beside where it really is: `kubectl`, `kubectl.1.27`, …; the newest last.
pub(crate) fn found() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let real = directories
        .iter()
        .find_map(|directory| directory.join("kubectl").canonicalize().ok());
    directories.extend(real.and_then(|real| Some(real.parent()?.to_owned())));
    let mut programs = BTreeMap::new();
    for directory in directories {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "kubectl" || name.starts_with("kubectl.1.") {
                programs.entry(name).or_insert_with(|| entry.path());
            }
        }
    }
    programs.into_values().collect()
}

/// The oldest and the newest of these, as their names tell, for what would take long with all.
pub(crate) fn oldest_and_newest(programs: &[PathBuf]) -> Vec<&PathBuf> {
    let numbered = |program: &&PathBuf| !program.ends_with("kubectl");
    let mut chosen: Vec<&PathBuf> = programs.iter().filter(numbered).collect();
    if chosen.is_empty() {
        chosen.extend(programs);
    }
    if chosen.len() > 2 {
        chosen.drain(1..chosen.len() - 1);
    }
    chosen
}
