#![no_main]

#[path = "../../src/fuzzing.rs"]
#[allow(dead_code, reason = "one target each")]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::state(data));
