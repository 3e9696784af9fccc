//! The module of datagrams alone: the package that it is part of would take minutes to build for each run.
#![no_main]

#[allow(dead_code)]
#[path = "../../src/gossip/datagram.rs"]
mod datagram;
#[path = "../../src/gossip/fuzzing.rs"]
mod fuzzing;

libfuzzer_sys::fuzz_target!(init: fuzz::catch_panics(), |input: &[u8]| {
    fuzz::run(fuzzing::datagrams, input);
});
