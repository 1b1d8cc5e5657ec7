//! A whole connection of SPDY, in memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quilt::streaming::fuzz::spdy_connection(data));
