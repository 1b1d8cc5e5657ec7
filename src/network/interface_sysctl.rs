//! Sysctls of an interface that somebody else has made in a pod's network.

use std::path::Path;

use super::error::NetworkError;
use super::pod::{in_namespace, open_netns};
use super::sysctl::Sysctl;

/// Sets those of the sysctls that are an interface's, in a pinned network namespace. The interface
/// is there; others are left alone.
///
/// # Errors
/// A bad sysctl, before anything is touched; a namespace that cannot be entered; or the first one
/// that cannot be set.
pub fn set_interface_sysctls(
    netns: &Path,
    interface: &str,
    sysctls: &[(String, String)],
) -> Result<(), NetworkError> {
    let own = Sysctl::of_interface(sysctls, interface)?;
    if own.is_empty() {
        return Ok(());
    }
    let netns = open_netns(netns)?;
    in_namespace(&netns, || own.iter().try_for_each(Sysctl::apply))
}
