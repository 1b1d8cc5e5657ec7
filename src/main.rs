//! The binary `quiltd`: its first argument says which of its roles it plays.

use std::process::ExitCode;

fn main() -> ExitCode {
    quilt::cli::run()
}
