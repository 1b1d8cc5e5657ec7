//! `quiltd pulls`

use super::output::{self, Reading, Show};

/// The arguments of `quiltd pulls`.
#[derive(clap::Args)]
pub(super) struct Pulls {
    #[command(flatten)]
    reading: Reading,
    /// Show each layer.
    #[arg(long)]
    layers: bool,
}

pub(super) async fn run(pulls: &Pulls) -> anyhow::Result<()> {
    if pulls.layers {
        let sql = "SELECT * FROM v_pull_layers ORDER BY key, position";
        let shown = [
            ("REFERENCE", "reference", Show::Long),
            ("LAYER", "digest", Show::Id),
            ("STATE", "state", Show::Plain),
            ("RECEIVED", "received_bytes", Show::Size),
            ("OF", "size_bytes", Show::Size),
            ("PER SECOND", "bytes_per_second", Show::Size),
            ("UPDATED", "updated_at", Show::Age),
        ];
        return output::list(&pulls.reading, sql, &[], &shown).await;
    }
    let sql = "SELECT * FROM v_pulls ORDER BY asked_at DESC, key";
    let shown = [
        ("REFERENCE", "reference", Show::Long),
        ("STATE", "state", Show::Plain),
        ("LAYERS", "layers_fetched", Show::Plain),
        ("OF", "layers", Show::Plain),
        ("RECEIVED", "received_bytes", Show::Size),
        ("OF", "size_bytes", Show::Size),
        ("PER SECOND", "bytes_per_second", Show::Size),
        ("ASKED", "asked_at", Show::Age),
        ("ERROR", "error", Show::Long),
    ];
    output::list(&pulls.reading, sql, &[], &shown).await
}
