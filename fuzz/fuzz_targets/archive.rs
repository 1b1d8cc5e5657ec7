//! The entries of a tar stream, their data to the end.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quilt::image::fuzz::archive(data));
