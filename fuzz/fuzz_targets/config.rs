//! The daemon's configuration file.
#![no_main]

use std::path::Path;

libfuzzer_sys::fuzz_target!(|text: &str| {
    drop(quilt::config::Config::parse(Path::new("c.toml"), text).map_err(|e| e.to_string()));
});
