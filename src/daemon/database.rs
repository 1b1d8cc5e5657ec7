//! The database at start: looked at before it is believed, set aside when it is damaged, rebuilt
//! when it is lost.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::reconcile::{self, Back, Loss, Paths, records};
use crate::state::opening::{self, Mark, Opening};
use crate::state::{DesiredWriter, ObservedWriter, Store};

/// An open database, and whether it has yet to be filled.
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) desired: DesiredWriter,
    pub(super) observed: ObservedWriter,
    /// How the one before it was lost.
    pub(super) loss: Option<Loss>,
}

/// Where the database is.
pub(super) fn path(paths: &Paths) -> PathBuf {
    paths.root.join("quilt.db")
}

/// Opens it, or a new one in its place.
pub(super) async fn open(paths: &Paths) -> anyhow::Result<Opened> {
    let path = path(paths);
    let facts = opening::examine(&path, records::exist(paths)).await;
    let loss = match opening::decide(facts) {
        Opening::Open => None,
        Opening::Refuse(why) => anyhow::bail!(why),
        Opening::Rebuild { why, set_aside } => Some(lose(&path, why, set_aside).await?),
    };
    let (store, desired, observed) = Store::open(&path).await?;
    Ok(Opened {
        store,
        desired,
        observed,
        loss,
    })
}

async fn lose(path: &Path, why: String, set_aside: bool) -> anyhow::Result<Loss> {
    // First the mark: should we die from here on, the next start begins the rebuild again.
    Mark::of(path).leave(&why);
    let set_aside = match set_aside {
        true => Some(opening::set_aside(path).await?),
        false => None,
    };
    Ok(Loss { why, set_aside })
}

/// Fills a database that takes the place of a lost one.
pub(super) async fn rebuild(back: &Back, executable: &Path, loss: &Loss) -> anyhow::Result<()> {
    let path = path(&back.paths);
    reconcile::rebuild(back, executable, loss)
        .await
        .with_context(|| format!("cannot rebuild {}", path.display()))?;
    opening::settle(&path).await?;
    Mark::of(&path).remove()?;
    Ok(())
}
