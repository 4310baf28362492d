#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| synproxy::fuzzing::http(data));
