//! How far the layers of an image have come, on standard error: a bar each on a terminal, a line
//! each otherwise.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::table;

/// All layers of one command.
pub(super) struct Progress {
    bars: MultiProgress,
    on_terminal: bool,
}

/// One layer.
pub(super) struct Layer {
    bar: Option<ProgressBar>,
    name: String,
    size: u64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            bars: MultiProgress::new(),
            on_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// A layer of `size` bytes begins.
    pub(super) fn layer(&self, digest: &str, size: u64) -> Layer {
        let name = table::short(digest);
        let bar = self.on_terminal.then(|| {
            let style = "{prefix}  {wide_bar}  {binary_bytes:>10} of {binary_total_bytes:>10}";
            let style = ProgressStyle::with_template(style);
            let bar = self.bars.add(ProgressBar::new(size));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(name.clone());
            bar
        });
        Layer { bar, name, size }
    }
}

impl Layer {
    /// So many bytes of it are there.
    pub(super) fn at(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }

    /// It is there.
    pub(super) fn done(&self) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.size);
                bar.finish();
            }
            None => {
                let size = table::size(i64::try_from(self.size).unwrap_or(i64::MAX));
                eprintln!("{}  {size}  done", self.name);
            }
        }
    }
}
