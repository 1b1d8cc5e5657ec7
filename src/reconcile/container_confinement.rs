//! From the profiles of a request to what the launch plan says of them.

use std::path::Path;
use std::sync::Arc;

use super::ReconcileError;
use crate::confinement::lsm;
use crate::confinement::seccomp::{self, Compiled, Source};
use crate::lifecycle::capability;
use crate::lifecycle::spec::{Profile, Security};

/// What a container is confined by.
#[derive(Debug, Clone, Default)]
pub(super) struct Confinement {
    pub(super) seccomp: Option<Arc<Compiled>>,
    pub(super) apparmor: Option<String>,
}

/// Compiles and chooses. Reads files: not for a thread that others wait for.
pub(super) fn of(security: &Security) -> Result<Confinement, ReconcileError> {
    let source = match &security.seccomp {
        // Privileged is without a filter, and so is what nobody has asked for (CRI).
        _ if security.privileged => None,
        None | Some(Profile::Unconfined) => None,
        Some(Profile::RuntimeDefault) => Some(Source::RuntimeDefault),
        Some(Profile::Localhost(path)) => Some(Source::Localhost(Path::new(path))),
    };
    let seccomp = source.map(|source| seccomp::compile(source, &capability::granted(security)));
    Ok(Confinement {
        seccomp: seccomp.transpose()?,
        apparmor: apparmor(security),
    })
}

/// The default is for whoever asks for nothing, where the node has it, and for nobody privileged.
fn apparmor(security: &Security) -> Option<String> {
    let name = match &security.apparmor {
        Some(Profile::Unconfined) => return None,
        Some(Profile::Localhost(name)) => return Some(name.clone()),
        _ if security.privileged => return None,
        Some(Profile::RuntimeDefault) => return Some(lsm::APPARMOR_DEFAULT.to_owned()),
        None => lsm::APPARMOR_DEFAULT,
    };
    (lsm::has_apparmor() && lsm::apparmor_profile_is_loaded(name)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_privileged_and_nobody_unconfined_has_a_filter() {
        let filtered = |seccomp, privileged| {
            let security = Security {
                seccomp,
                privileged,
                ..Default::default()
            };
            of(&security).expect("a confinement").seccomp.is_some()
        };
        assert!(filtered(Some(Profile::RuntimeDefault), false));
        assert!(!filtered(Some(Profile::RuntimeDefault), true));
        assert!(!filtered(Some(Profile::Localhost("/absent".into())), true));
        assert!(!filtered(Some(Profile::Unconfined), false));
        assert!(!filtered(None, false));
    }
}
