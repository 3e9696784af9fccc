//! What all targets share: which panics count.
//!
//! Never here: what is tried, which is in `store/src/fuzzing` and `src/gossip/fuzzing.rs`, so that tests replay it.

use std::panic::{catch_unwind, set_hook};
use std::sync::{Mutex, PoisonError};

static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Replaces libfuzzer's hook, for which every panic is a crash: those that the product catches (automerge's, of a peer's
/// bytes) are none.
pub fn catch_panics() {
    set_hook(Box::new(|panic| {
        let text = format!("{panic}\n{}", std::backtrace::Backtrace::capture());
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }));
}

/// Runs a target on an input; a panic that comes through is a crash.
pub fn run(target: fn(&[u8]), input: &[u8]) {
    if catch_unwind(|| target(input)).is_err() {
        eprintln!("{}", LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner));
        std::process::abort();
    }
}
