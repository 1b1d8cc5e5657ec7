//! Files that say how a registry is reached.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| quilt::image::fuzz::hosts_file(text));
