//! `quiltd image check`

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::json;

use crate::cli::output::Format;
use crate::cli::{Asking, link};
use crate::proto::admin::{CheckImagesRequest, CheckedImagePart};

#[derive(clap::Args)]
pub(in crate::cli) struct Check {
    /// Fetch again what is broken, and only that.
    #[arg(long)]
    repair: bool,
    /// Compare names, modes, owners, sizes, times and attributes; do not read the files.
    #[arg(long)]
    quick: bool,
    /// Images by id, beginning of an id, or name; none means all.
    #[arg(value_name = "REF")]
    images: Vec<String>,
    #[command(flatten)]
    asking: Asking,
}

/// The answer is in the exit status as well.
pub(super) fn run(check: &Check) -> ExitCode {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let checked = link::block_on(async {
        let mut client = link::connect(&check.asking.daemon.state).await?;
        let request = CheckImagesRequest {
            images: check.images.clone(),
            quick: check.quick,
            repair: check.repair,
        };
        let mut parts = link::answer(client.check_images(request).await)?;
        let mut image = String::new();
        let mut all = Vec::new();
        while let Some(part) = link::said(parts.message().await)? {
            *counts.entry(part.verdict.clone()).or_default() += 1;
            match check.asking.output {
                Format::Table => print_part(&part, &mut image),
                Format::Json => all.push(as_json(&part)),
            }
        }
        match check.asking.output {
            Format::Json => println!("{}", serde_json::Value::from(all)),
            Format::Table => println!("{}", summary(&counts)),
        }
        Ok(())
    });
    match checked {
        Ok(()) if counts.contains_key("damaged") => ExitCode::from(1),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quiltd: cannot check: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn print_part(part: &CheckedImagePart, image: &mut String) {
    if part.image_id != *image {
        image.clone_from(&part.image_id);
        println!("{image} {}", part.names.first().map_or("", String::as_str));
    }
    let what = match part.layer.as_str() {
        "" => "manifest and configuration".to_owned(),
        layer => format!("layer {layer}"),
    };
    let CheckedImagePart {
        verdict,
        entries,
        bytes_read,
        ..
    } = part;
    println!("  {verdict:<9} {what}: {entries} entries, {bytes_read} bytes read");
    for difference in &part.differences {
        println!("            {difference}");
    }
    if part.more > 0 {
        println!("            and {} more", part.more);
    }
    if !part.error.is_empty() {
        println!("         -> left: {}", part.error);
    }
}

fn summary(counts: &BTreeMap<String, usize>) -> String {
    let of = |verdict| counts.get(verdict).copied().unwrap_or(0);
    let (whole, repaired, damaged) = (of("whole"), of("repaired"), of("damaged"));
    format!("{whole} whole, {repaired} repaired, {damaged} damaged")
}

fn as_json(part: &CheckedImagePart) -> serde_json::Value {
    json!({
        "image": part.image_id,
        "names": part.names,
        "layer": part.layer,
        "verdict": part.verdict,
        "differences": part.differences,
        "more": part.more,
        "entries": part.entries,
        "bytes_read": part.bytes_read,
        "error": part.error,
    })
}
