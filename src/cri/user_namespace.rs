//! User namespaces and mapped mounts of requests (CRI `UserNamespace` and `IDMapping`, KEP-127).

use super::CallError;
use crate::lifecycle::id_map::{self, IdMaps, IdRange};
use crate::lifecycle::spec::NamespaceMode;
use crate::proto::cri as v1;

/// The maps of a pod that wants a user namespace of its own. Absent means the node's own; mode POD
/// (0) in a message that is there means a new one.
pub(super) fn of_options(
    field: &str,
    options: Option<v1::UserNamespace>,
) -> Result<Option<IdMaps>, CallError> {
    let Some(options) = options else {
        return Ok(None);
    };
    match v1::NamespaceMode::try_from(options.mode) {
        Ok(v1::NamespaceMode::Pod) => {}
        Ok(v1::NamespaceMode::Node) if options.uids.is_empty() && options.gids.is_empty() => {
            return Ok(None);
        }
        Ok(v1::NamespaceMode::Node) => {
            let why = "are given, but mode is NODE: the node's namespace has no mappings";
            return Err(CallError::invalid(format!("{field}.uids and gids"), why));
        }
        _ => {
            let why = "is neither POD nor NODE";
            return Err(CallError::invalid(format!("{field}.mode"), why));
        }
    }
    let maps = maps(options.uids, options.gids);
    for (name, ranges) in [("uids", &maps.uids), ("gids", &maps.gids)] {
        id_map::check_pods(ranges)
            .map_err(|why| CallError::invalid(format!("{field}.{name}"), why))?;
    }
    Ok(Some(maps))
}

/// The maps of a mount, if it has some.
pub(super) fn of_mount(
    field: &str,
    uids: Vec<v1::IdMapping>,
    gids: Vec<v1::IdMapping>,
) -> Result<Option<IdMaps>, CallError> {
    if uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    let maps = maps(uids, gids);
    for (name, ranges) in [("uidMappings", &maps.uids), ("gidMappings", &maps.gids)] {
        id_map::check(ranges).map_err(|why| CallError::invalid(format!("{field}.{name}"), why))?;
    }
    Ok(Some(maps))
}

/// What a pod with a user namespace cannot share with the node: processes of the namespace have no
/// rights over what is the node's, not even to mount a `/proc` of its processes. The network is
/// another matter (KEP-5607).
pub(super) fn refuse_nodes(
    field: &str,
    users: Option<&IdMaps>,
    modes: [(&str, &NamespaceMode); 2],
) -> Result<(), CallError> {
    if users.is_none() {
        return Ok(());
    }
    match modes
        .into_iter()
        .find(|(_, mode)| **mode == NamespaceMode::Node)
    {
        None => Ok(()),
        Some((name, _)) => {
            let why = "is NODE, which a pod with a user namespace of its own cannot have";
            Err(CallError::invalid(format!("{field}.{name}"), why))
        }
    }
}

/// A container lives in its sandbox' user namespace, and has to say so.
pub(super) fn refuse_other(
    field: &str,
    own: Option<&IdMaps>,
    pods: Option<&IdMaps>,
) -> Result<(), CallError> {
    if own == pods {
        return Ok(());
    }
    let told = |maps: Option<&IdMaps>| maps.map_or_else(|| "the node's".into(), IdMaps::to_string);
    let why = format!("is {}, but the sandbox' is {}", told(own), told(pods));
    Err(CallError::invalid(field, why))
}

fn maps(uids: Vec<v1::IdMapping>, gids: Vec<v1::IdMapping>) -> IdMaps {
    let ranges = |mappings: Vec<v1::IdMapping>| {
        let range = |mapping: v1::IdMapping| IdRange {
            container_id: mapping.container_id,
            host_id: mapping.host_id,
            length: mapping.length,
        };
        mappings.into_iter().map(range).collect()
    };
    IdMaps {
        uids: ranges(uids),
        gids: ranges(gids),
    }
}

/// The maps as the interface has them: users, then groups.
pub(super) fn view(maps: &IdMaps) -> (Vec<v1::IdMapping>, Vec<v1::IdMapping>) {
    let ranges = |ranges: &[IdRange]| {
        let range = |range: &IdRange| v1::IdMapping {
            host_id: range.host_id,
            container_id: range.container_id,
            length: range.length,
        };
        ranges.iter().map(range).collect()
    };
    (ranges(&maps.uids), ranges(&maps.gids))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container_id: u32, host_id: u32, length: u32) -> v1::IdMapping {
        v1::IdMapping {
            host_id,
            container_id,
            length,
        }
    }

    fn options(mode: v1::NamespaceMode, maps: &[v1::IdMapping]) -> Option<v1::UserNamespace> {
        Some(v1::UserNamespace {
            mode: mode.into(),
            uids: maps.to_vec(),
            gids: maps.to_vec(),
        })
    }

    #[test]
    fn a_pods_namespace_is_told_from_the_nodes_and_from_nonsense() {
        use v1::NamespaceMode::{Container, Node, Pod, Target};
        let one = [range(0, 1000, 100)];
        assert_eq!(of_options("u", None).expect("the node's"), None);
        assert_eq!(
            of_options("u", options(Node, &[])).expect("the node's"),
            None
        );
        let maps = of_options("u", options(Pod, &one))
            .expect("valid")
            .expect("a pod's");
        assert_eq!(view(&maps), (one.to_vec(), one.to_vec()));
        for (mode, maps, word) in [
            (Node, &one[..], "u.uids and gids"),
            (Container, &one, "u.mode"),
            (Target, &one, "u.mode"),
            (Pod, &[range(1, 1000, 100)], "u.uids"),
            (Pod, &[range(0, 1, 9), range(9, 100, 9)], "u.uids"),
        ] {
            let error = of_options("u", options(mode, maps)).expect_err(word);
            assert!(error.to_string().starts_with(word), "{error}");
        }
    }

    #[test]
    fn a_container_says_what_its_sandbox_has() {
        let maps = maps(vec![range(0, 1000, 10)], vec![range(0, 1000, 10)]);
        let other = IdMaps::default();
        assert!(refuse_other("u", None, None).is_ok());
        assert!(refuse_other("u", Some(&maps), Some(&maps)).is_ok());
        for (own, pods) in [
            (None, Some(&maps)),
            (Some(&maps), None),
            (Some(&other), Some(&maps)),
        ] {
            assert!(refuse_other("u", own, pods).is_err(), "{own:?} {pods:?}");
        }
        let nodes = [("pid", &NamespaceMode::Pod), ("ipc", &NamespaceMode::Node)];
        let error = refuse_nodes("n", Some(&maps), nodes).expect_err("the node's IPC");
        assert!(error.to_string().starts_with("n.ipc"), "{error}");
        assert!(refuse_nodes("n", None, nodes).is_ok());
    }
}
