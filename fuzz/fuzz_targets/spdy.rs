//! Frames of SPDY, read in pieces and at once, and written again.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quilt::streaming::fuzz::spdy(data));
