#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferryd_fuzz::framing::run(bytes));
