//! Writes what the fuzzers begin with: `seeds DIRECTORY` makes a directory for each target in it.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let directory = std::env::args_os().nth(1).expect("usage: seeds DIRECTORY");
    for (number, (target, input)) in quilt::image::fuzz::seeds().into_iter().enumerate() {
        let directory = Path::new(&directory).join(target);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(format!("seed-{number}")), input)?;
    }
    Ok(())
}
