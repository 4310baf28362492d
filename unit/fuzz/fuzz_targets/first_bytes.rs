#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unit::fuzzing::first_bytes(data));
