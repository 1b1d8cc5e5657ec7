//! Configurations of images.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quilt::image::fuzz::image_config(data));
