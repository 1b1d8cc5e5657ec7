//! Names under the systemd cgroup driver: of slices, of a container's units, and of the cgroups
//! that come of them (systemd.slice(5), systemd.scope(5)).
//!
//! ```text
//! kubepods-burstable-podX.slice                  the pod's, made by kubelet
//! └── kubepods-burstable-podX-quilt_A_B.slice    a container's; it counts also when that has ended
//!     └── quilt-AB.scope                         its processes and limits; AB is its id
//! ```
//!
//! systemd removes a scope in the moment in which it becomes empty, and with it the kernel's count
//! of what it has killed for want of memory. A slice stays until it is stopped, and counts for all
//! below it. The slice's name has the id in two halves: whatever looks for 64 hex digits in a name
//! (cAdvisor) is to find the scope.

use crate::id::ID_LENGTH;

/// How the name of a slice ends.
const SLICE: &str = ".slice";
/// How the name of a scope ends.
const SCOPE: &str = ".scope";
/// How that of a container's begins.
const PREFIX: &str = "quilt-";
/// What stands between the name of a pod's slice and the id of a container in it.
const BETWEEN: &str = "-quilt_";
/// Longest name of a parent: systemd takes 255 bytes, and a container's slice adds 72.
const NAME_MAX: usize = 180;

/// The units of a container under the systemd driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Units {
    /// The slice that is its alone.
    pub slice: String,
    /// The scope of its processes.
    pub scope: String,
}

/// Whether a path or a name is that of a slice.
#[must_use]
pub fn is_slice(path: &str) -> bool {
    path.ends_with(SLICE)
}

/// Where the cgroup of a slice is, from its name: `a-b.slice` lies in `a.slice`.
///
/// # Errors
/// Why it is no name of a slice that containers could be in.
pub fn expand(name: &str) -> Result<String, &'static str> {
    let stem = name
        .strip_suffix(SLICE)
        .ok_or("is no slice: it does not end in .slice")?;
    if name.len() > NAME_MAX {
        return Err("is a slice whose name is longer than 180 bytes");
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\".contains(&byte);
    if !stem.bytes().all(plain) {
        return Err("is a slice whose name has other characters than letters, digits and :-_.\\");
    }
    if stem.is_empty() || stem.split('-').any(str::is_empty) {
        return Err("is a slice whose name has an empty part, or the root of all slices");
    }
    let ends = stem.match_indices('-').map(|(at, _)| at);
    let levels = ends.chain([stem.len()]);
    Ok(levels
        .map(|end| format!("/{}{SLICE}", &stem[..end]))
        .collect())
}

/// The path of a parent in either spelling: the bare name of a slice, or a path. A path that ends
/// in a slice is to be that slice's.
///
/// # Errors
/// What is wrong with the name of a slice.
pub fn parent(text: &str) -> Result<String, &'static str> {
    if !is_slice(text) {
        return Ok(text.to_owned());
    }
    match text.rsplit_once('/') {
        None => expand(text),
        Some((_, name)) => match expand(name)? {
            path if path == text => Ok(path),
            _ => Err("is a slice that does not lie there: a-b.slice lies in a.slice"),
        },
    }
}

/// The path of the cgroup that has this id below `parent`, which is one of [`parent`]'s.
#[must_use]
pub fn member(parent: &str, id: &str) -> String {
    let parent = parent.trim_end_matches('/');
    let name = parent.rsplit('/').next().unwrap_or_default();
    let Some(stem) = name.strip_suffix(SLICE) else {
        return format!("{parent}/{id}");
    };
    let (one, other) = id.split_at_checked(id.len() / 2).unwrap_or((id, ""));
    format!("{parent}/{stem}{BETWEEN}{one}_{other}{SLICE}/{PREFIX}{id}{SCOPE}")
}

/// The units behind a path that [`member`] has made; `None` is a cgroup without units.
#[must_use]
pub fn units(path: &str) -> Option<Units> {
    let (above, scope) = path.rsplit_once('/')?;
    let (_, slice) = above.rsplit_once('/')?;
    let id = scope.strip_prefix(PREFIX)?.strip_suffix(SCOPE)?;
    (of_slice(slice)? == id).then(|| Units {
        slice: slice.to_owned(),
        scope: scope.to_owned(),
    })
}

/// The id that the last component of a cgroup's path has, of a pod or a container; `None` is a
/// cgroup that none of ours could be.
#[must_use]
pub fn id_of(path: &str) -> Option<String> {
    let name = path.rsplit('/').next().unwrap_or_default();
    if is_id(name) {
        return Some(name.to_owned());
    }
    let of_scope = || name.strip_prefix(PREFIX)?.strip_suffix(SCOPE);
    match of_scope() {
        Some(id) => is_id(id).then(|| id.to_owned()),
        None => of_slice(name),
    }
}

/// Whose slice it is, if it is a container's.
fn of_slice(name: &str) -> Option<String> {
    let (_, halves) = name.strip_suffix(SLICE)?.rsplit_once(BETWEEN)?;
    let (one, other) = halves.split_once('_')?;
    let id = format!("{one}{other}");
    (one.len() == other.len() && is_id(&id)).then_some(id)
}

fn is_id(name: &str) -> bool {
    name.len() == ID_LENGTH
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POD: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu_1.slice";

    #[test]
    fn a_slice_lies_in_the_slice_that_its_name_begins_with() {
        assert_eq!(expand("quilt.slice").as_deref(), Ok("/quilt.slice"));
        assert_eq!(
            expand("kubepods-burstable-podu_1.slice").as_deref(),
            Ok(POD)
        );
        for bad in [
            "",
            ".slice",
            "-.slice",
            "a",
            "a-.slice",
            "-a.slice",
            "a--b.slice",
            "a/b.slice",
            "a b.slice",
            "a@.slice",
            "../a.slice",
        ] {
            assert!(expand(bad).is_err(), "{bad:?}");
        }
        assert!(expand(&format!("{}.slice", "a".repeat(175))).is_err());
    }

    #[test]
    fn both_spellings_of_a_parent_are_one() {
        assert_eq!(
            parent("kubepods-burstable-podu_1.slice").as_deref(),
            Ok(POD)
        );
        assert_eq!(parent(POD).as_deref(), Ok(POD));
        assert_eq!(parent("/quilt").as_deref(), Ok("/quilt"));
        for bad in [
            "/kubepods-burstable.slice",
            "/b.slice/a-b.slice",
            "x/a.slice",
            "//a.slice",
        ] {
            assert!(parent(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_container_has_a_scope_in_a_slice_of_its_own_and_its_id_once() {
        let id = "0123456789abcdef".repeat(4);
        let path = member(POD, &id);
        let units = units(&path).expect("units");
        assert_eq!(units.scope, format!("quilt-{id}.scope"));
        let (one, other) = id.split_at(32);
        let slice = format!("kubepods-burstable-podu_1-quilt_{one}_{other}.slice");
        assert_eq!(units.slice, slice);
        let expanded = format!("{POD}/{slice}/quilt-{id}.scope");
        assert_eq!(path, expanded);
        for named in [&path, &units.slice, &units.scope, &member("/quilt", &id)] {
            assert_eq!(id_of(named).as_ref(), Some(&id), "{named}");
        }
        // As cAdvisor looks for ids: 64 small letters and digits in a row.
        let run = |name: &str| {
            let rows = name.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
            rows.map(str::len).max()
        };
        assert_eq!((run(&units.scope), run(&units.slice)), (Some(64), Some(32)));
        let added = units.slice.len() - "kubepods-burstable-podu_1.slice".len();
        assert!(NAME_MAX + added <= 255, "{added}");
    }

    #[test]
    fn what_others_have_named_is_not_taken_for_ours() {
        let id = "0123456789abcdef".repeat(4);
        for name in [
            "kubepods.slice".to_owned(),
            format!("cri-containerd-{id}.scope"),
            format!("quilt-{id}.slice"),
            format!("a-quilt_{id}.slice"),
            format!("a-quilt_{}_{}.slice", &id[..31], &id[31..]),
            format!("quilt-{}.scope", &id[1..]),
        ] {
            assert_eq!(id_of(&name), None, "{name}");
        }
        assert_eq!(units("/a/b"), None);
        assert_eq!(units(&format!("/a.slice/quilt-{id}.scope")), None);
    }

    proptest! {
        #[test]
        fn an_expanded_slice_is_its_own_parent(name in "[a-c-]{1,12}\\.slice") {
            if let Ok(path) = expand(&name) {
                let last = format!("/{}", name);
                prop_assert!(path.ends_with(&last));
                let expanded = parent(&path);
                prop_assert_eq!(expanded.as_deref(), Ok(path.as_str()));
            }
        }
    }
}
