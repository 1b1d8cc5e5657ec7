//! Compressed layers, unpacked for real into a directory beside one that must not change.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

static GROUND: LazyLock<PathBuf> = LazyLock::new(|| {
    let ground = std::env::temp_dir().join(format!("quilt-fuzz-{}", std::process::id()));
    std::fs::create_dir(&ground).expect("a directory of our own");
    ground
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    quilt::image::fuzz::layer(data, &GROUND).expect("a ground to fight on");
});
