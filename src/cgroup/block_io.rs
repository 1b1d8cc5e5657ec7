//! The weight of block I/O, in either version's terms.

use oci_spec::runtime::LinuxBlockIo;

use super::error::CgroupError;
use super::file;
use super::layout::Cgroups;
use super::path::CgroupPath;
use super::resources::invalid;

/// Weights as the scheduler BFQ has them; 100 is the normal one.
pub(super) const WEIGHTS: std::ops::RangeInclusive<u16> = 1..=1000;

/// Files that take a weight: of v1 and of v2, by the scheduler BFQ and by io.cost. In all of them
/// 100 is normal.
const V1: [&str; 1] = ["blkio.bfq.weight"];
const V2: [&str; 2] = ["io.bfq.weight", "io.weight"];

/// Checks what can be checked without touching a cgroup.
pub(super) fn validate(limits: &LinuxBlockIo) -> Result<(), CgroupError> {
    match limits.weight() {
        Some(weight) if !WEIGHTS.contains(&weight) => {
            let reason = "a weight is 1 to 1000";
            Err(invalid("blockIO.weight", &weight.to_string(), reason))
        }
        _ => Ok(()),
    }
}

/// Sets the weight in all files that take one: the kernel uses that of the disk's scheduler.
pub(super) fn apply(
    cgroups: &Cgroups,
    path: &CgroupPath,
    limits: &LinuxBlockIo,
) -> Result<(), CgroupError> {
    let Some(weight) = limits.weight() else {
        return Ok(());
    };
    let v1 = cgroups.v1_dir("blkio", path);
    let v2 = cgroups.v2_dir("io", path);
    let files = [(v1, V1.as_slice()), (v2, V2.as_slice())];
    let mut set = false;
    for (dir, names) in files {
        let Some(dir) = dir else { continue };
        for name in names.iter().filter(|name| dir.join(name).exists()) {
            file::write(&dir, name, &weight.to_string())?;
            set = true;
        }
    }
    match set {
        true => Ok(()),
        false => Err(CgroupError::ControllerMissing {
            controller: "for weights of block I/O (BFQ or io.cost)".into(),
            wanted: format!("a weight of {weight}"),
        }),
    }
}
