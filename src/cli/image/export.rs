//! `quiltd image export`: an OCI layout as a tar, made of the same bytes as the registry has.
//!
//! Manifest and configuration are in the database, byte for byte. Layers are kept unpacked, and no
//! unpacked tree tells what its archive was. Blobs that are kept beside them (`[image] keep_blobs`)
//! are used, others are fetched again, by digest, and checked; no daemon is needed for it. Nothing
//! is written under the name that was asked for before all of it is there.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::find;
use super::layout::{Entry, Layout};
use super::progress::{self, Progress};
use crate::cli::place::Place;
use crate::config::{Config, DEFAULT_PATH};
use crate::image::{
    Credentials, Digest, ImageDriver, Lookup, Reference, ResolvedImage, StoredManifest,
};
use crate::state::inspect::Inspector;

#[derive(clap::Args)]
pub(in crate::cli) struct Export {
    /// Names, ids, or beginnings of ids.
    #[arg(required = true)]
    images: Vec<String>,
    /// The file to write; `-` is standard output.
    #[arg(short, long)]
    output: PathBuf,
    /// The daemon's configuration: mirrors, certificates and credentials of registries.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// An image as it goes into the layout.
struct Source {
    manifest: StoredManifest,
    manifest_bytes: Vec<u8>,
    config_bytes: Vec<u8>,
    /// By which its registry knows it.
    from: Reference,
    /// Where its blobs may be kept.
    kept: Option<ResolvedImage>,
    entry: Entry,
}

pub(super) async fn run(export: &Export) -> anyhow::Result<()> {
    let config = Config::load(&export.config)?;
    let driver = ImageDriver::new(&export.place.root()?, config.image.driver())?;
    let mut inspector = export.place.open().await?;
    let mut sources = Vec::new();
    for name in &export.images {
        sources.push(look_up(&mut inspector, &driver, name).await?);
    }
    if export.output == Path::new("-") {
        let mut out = BufWriter::new(io::stdout().lock());
        write(&mut out, &driver, &sources).await?;
        return Ok(out.flush()?);
    }
    let part = Part::create(&export.output)?;
    let mut out = BufWriter::new(&part.file);
    let written = tokio::select! {
        written = write(&mut out, &driver, &sources) => written,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted; nothing was written")),
    };
    written?;
    out.flush()?;
    drop(out);
    part.finish()
}

async fn look_up(
    inspector: &mut Inspector,
    driver: &ImageDriver,
    name: &str,
) -> anyhow::Result<Source> {
    let image = find::find(inspector, name).await?;
    let documents = find::documents(inspector, image.text("id")).await?;
    let (manifest_bytes, config_bytes) = documents.with_context(|| {
        format!("{name}: an older version pulled it and kept no manifest; pull it again")
    })?;
    let manifest = StoredManifest::parse(&manifest_bytes)
        .with_context(|| format!("{name}: its manifest in the database"))?;
    let digests = find::list(&image, "digests");
    let Some(from) = digests.first() else {
        bail!("{name}: no registry is known that has it");
    };
    let from: Reference = from.parse()?;
    let kept = driver.kept_image(&from, manifest_bytes.clone(), config_bytes.clone());
    Ok(Source {
        kept: kept.ok(),
        entry: Entry {
            media_type: manifest.media_type.clone(),
            digest: Digest::sha256(&manifest_bytes),
            size: manifest_bytes.len() as u64,
            names: find::list(&image, "tags"),
        },
        from,
        manifest,
        manifest_bytes,
        config_bytes,
    })
}

async fn write(
    out: &mut impl Write,
    driver: &ImageDriver,
    sources: &[Source],
) -> anyhow::Result<()> {
    let entries: Vec<_> = sources.iter().map(|source| &source.entry).collect();
    let mut layout = Layout::begin(out, &entries)?;
    let progress = Progress::new();
    for source in sources {
        for bytes in [&source.manifest_bytes, &source.config_bytes] {
            if layout.blob(&Digest::sha256(bytes), bytes.len() as u64)? {
                layout.write(bytes)?;
                layout.close()?;
            }
        }
        // One for all layers of an image: it remembers what token it has.
        let mut registry = None;
        for (index, (digest, size)) in source.manifest.layers.iter().enumerate() {
            if layout.blob(digest, *size)? {
                let shown = progress.layer(&digest.to_string(), *size);
                layer(&mut layout, driver, (source, index), &mut registry, &shown).await?;
            }
        }
    }
    layout.end()?;
    Ok(())
}

/// Brings a layer's blob into the layout: the one that is kept, or else the registry's.
async fn layer(
    layout: &mut Layout<impl Write>,
    driver: &ImageDriver,
    (source, index): (&Source, usize),
    registry: &mut Option<Lookup>,
    shown: &progress::Layer,
) -> anyhow::Result<()> {
    let (digest, size) = &source.manifest.layers[index];
    let (mut got, mut written) = (0, Ok(()));
    let mut take = |piece: &[u8]| {
        got += piece.len() as u64;
        shown.at(got);
        written = layout.write(piece);
        written.is_ok()
    };
    let copied = match &source.kept {
        Some(image) => driver.copy_kept_blob(image, index, &mut take)?,
        None => None,
    };
    if copied.is_none() {
        let registry = match registry {
            Some(known) => known,
            none => none.insert(driver.lookup(&source.from, &Credentials::Anonymous.into())?),
        };
        let copied = registry.copy_blob(digest, *size, &mut take).await;
        copied.with_context(|| {
            format!(
                "layer {digest}: only its registry has it as it was; {} is asked",
                source.from.host()
            )
        })?;
    }
    written?;
    layout.close()?;
    shown.done();
    Ok(())
}

/// A file that gets its name when it is whole, and goes when it never is.
struct Part {
    file: File,
    path: PathBuf,
    target: PathBuf,
    whole: bool,
}

impl Part {
    fn create(target: &Path) -> anyhow::Result<Self> {
        let name = target.file_name().context("--output names no file")?;
        let mut part = std::ffi::OsString::from(".");
        part.push(name);
        part.push(format!(".{}.part", std::process::id()));
        let path = target.with_file_name(part);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            file,
            path,
            target: target.to_owned(),
            whole: false,
        })
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let target = self.target.display().to_string();
        self.file
            .sync_all()
            .with_context(|| format!("cannot write {target}"))?;
        std::fs::rename(&self.path, &self.target)
            .with_context(|| format!("cannot name {target}"))?;
        self.whole = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.whole {
            // What cannot be removed is named by its path, which says what it is.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
