#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_fuzz::chunk(data));
