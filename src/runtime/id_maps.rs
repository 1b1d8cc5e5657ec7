//! The user namespaces by which owners of files are mapped: the pod's own, where a mount asks for
//! just its ids, or one that is made for the purpose and ends with the mount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{LinuxIdMapping, Mount};
use rustix::io::Errno;
use rustix::thread::ThreadNameSpaceType;

use super::error::{At, LaunchError};
use super::user_namespace::Users;
use crate::sys::userns::Holder;

/// The maps of users and of groups.
pub(super) type Maps = (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>);

/// What a mount of a plan asks for, if it does.
pub(super) fn of_mount(mount: &Mount) -> Option<Maps> {
    let given = |maps: &Option<Vec<LinuxIdMapping>>| maps.clone().unwrap_or_default();
    let maps = (given(mount.uid_mappings()), given(mount.gid_mappings()));
    (!maps.0.is_empty() || !maps.1.is_empty()).then_some(maps)
}

/// User namespaces by their maps.
#[derive(Debug)]
pub(super) struct IdMaps<'a> {
    pod: Option<&'a Users>,
    made: Vec<(Maps, OwnedFd)>,
}

impl<'a> IdMaps<'a> {
    /// `pod` is the one that the container is in.
    pub(super) fn new(pod: Option<&'a Users>) -> Self {
        Self {
            pod,
            made: Vec::new(),
        }
    }

    /// The one with just these maps. `at` is the stage of its errors. The caller has to be of the
    /// node's own user namespace, and to have one thread.
    pub(super) fn namespace(
        &mut self,
        maps: &Maps,
        at: &str,
    ) -> Result<BorrowedFd<'_>, LaunchError> {
        if let Some(pod) = self.pod.filter(|pod| pod.maps() == maps) {
            return Ok(pod.namespace());
        }
        let index = match self.made.iter().position(|(made, _)| made == maps) {
            Some(index) => index,
            None => {
                self.made.push((maps.clone(), make(maps, at)?));
                self.made.len() - 1
            }
        };
        Ok(self.made[index].1.as_fd())
    }
}

fn make(maps: &Maps, at: &str) -> Result<OwnedFd, LaunchError> {
    let what = || "make a user namespace for the owners of its files";
    let holder = Holder::new(ThreadNameSpaceType::empty()).at(at, what)?;
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mapped = holder.map(&lines(&maps.0), &lines(&maps.1)).map_err(errno);
    mapped.at(at, || "map the owners of its files")?;
    let opened = holder.open("user").map_err(errno).at(at, what)?;
    Ok(opened.into())
}

/// As `/proc/PID/uid_map` takes them.
fn lines(map: &[LinuxIdMapping]) -> String {
    let line = |range: &LinuxIdMapping| {
        let (inside, outside, length) = (range.container_id(), range.host_id(), range.size());
        format!("{inside} {outside} {length}\n")
    };
    map.iter().map(line).collect()
}
