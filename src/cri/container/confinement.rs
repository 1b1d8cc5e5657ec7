//! What a request says of seccomp and AppArmor, held against this node before anything is touched.

use std::path::PathBuf;

use crate::confinement::lsm;
use crate::confinement::seccomp::{self, Source};
use crate::cri::CallError;
use crate::lifecycle::capability;
use crate::lifecycle::spec::{Profile, Security};

/// Where both profiles stand in a request.
const FIELD: &str = "config.linux.security_context";

/// Checks that the profiles of a container can be had: a file is read and compiled here, once for
/// all containers that name it, and again from the file when one is started.
pub(super) async fn check(security: &Security) -> Result<(), CallError> {
    check_apparmor(security)?;
    if security.selinux && lsm::has_selinux() {
        return Err(CallError::Unimplemented(
            "an SELinux label (security_context.selinux_options)",
        ));
    }
    // Privileged means without a filter, whatever else is said.
    let (Some(Profile::Localhost(path)), false) = (&security.seccomp, security.privileged) else {
        return Ok(());
    };
    let (path, security) = (PathBuf::from(path), security.clone());
    let compiled = tokio::task::spawn_blocking(move || {
        let capabilities = capability::granted(&security);
        seccomp::compile(Source::Localhost(&path), &capabilities)
    });
    let compiled = compiled
        .await
        .map_err(|error| CallError::Failed(error.to_string()))?;
    compiled.map(drop).map_err(|error| {
        let source = std::error::Error::source(&error);
        let source = source.map_or_else(String::new, |source| format!(": {source}"));
        CallError::invalid(
            format!("{FIELD}.seccomp.localhost_ref"),
            format!("{error}{source}"),
        )
    })
}

/// A profile that is asked for by name must be there: a container must not run without the
/// confinement that it was promised.
fn check_apparmor(security: &Security) -> Result<(), CallError> {
    let missing = |why: String| CallError::Missing {
        field: format!("{FIELD}.apparmor"),
        why,
    };
    let name = match &security.apparmor {
        None | Some(Profile::Unconfined) => return Ok(()),
        Some(Profile::RuntimeDefault) if security.privileged => return Ok(()),
        Some(Profile::RuntimeDefault) => lsm::APPARMOR_DEFAULT,
        Some(Profile::Localhost(name)) => name,
    };
    if !lsm::has_apparmor() {
        let why = "asks for a profile, and this node has no AppArmor";
        return Err(missing(why.to_owned()));
    }
    if !lsm::apparmor_profile_is_loaded(name) {
        let why = format!("asks for profile {name:?}, which is not loaded: see apparmor_parser(8)");
        return Err(missing(why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_apparmor_refuses_what_needs_it_and_nothing_else() {
        if lsm::has_apparmor() {
            return;
        }
        let check = |apparmor, privileged| {
            check_apparmor(&Security {
                apparmor,
                privileged,
                ..Default::default()
            })
        };
        assert!(check(None, false).is_ok());
        assert!(check(Some(Profile::Unconfined), false).is_ok());
        assert!(check(Some(Profile::RuntimeDefault), true).is_ok());
        let error = check(Some(Profile::RuntimeDefault), false).expect_err("promised");
        assert!(error.to_string().contains("no AppArmor"), "{error}");
        assert!(check(Some(Profile::Localhost("mine".into())), true).is_err());
    }
}
