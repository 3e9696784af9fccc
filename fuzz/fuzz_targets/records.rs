#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::catch_panics(), |input: &[u8]| {
    fuzz::run(store::fuzzing::records, input);
});
