//! Names of images.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| quilt::image::fuzz::reference(text));
