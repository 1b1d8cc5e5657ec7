//! What there is, compared with what the rows say: the one comparison behind the sweep, its
//! periodic run and `quiltd check`.
//!
//! ```text
//!            in no row, and marked as ours ──► orphan:  a cleanup task removes it
//!  Found ──► in a row, and not there       ──► missing: made again, or the row stops claiming it
//!            there, and not as it should be ─► wrong:   completed, or reported
//! ```
//!
//! Ours is what lies in our own directories, a link with our alias, and a cgroup with our mark (or
//! an empty one without any mark below our own cgroup root). Everything else is never in the list.
//! What was found must have been listed before the rows were read: then what is made meanwhile has
//! its row already.

use std::collections::{BTreeMap, BTreeSet};

use super::{slice, stored_as_text};

stored_as_text! {
    /// How what there is differs from what the rows say.
    Kind {
        /// It exists and has no row.
        Orphan = "orphan",
        /// It has a row and does not exist.
        Missing = "missing",
        /// It exists and is not as it should be.
        Wrong = "wrong",
    }
}

stored_as_text! {
    /// What kind of thing differs.
    Thing {
        /// A pod's place in a network that plugins make, by the pod's id.
        Attachment = "pod network",
        /// The bridge that joins the pods.
        Bridge = "bridge",
        /// A cgroup, by its path.
        Cgroup = "cgroup",
        /// A container's directory with plan and FIFOs, by id.
        ContainerFiles = "container directory",
        /// A complete image, by id.
        Image = "image",
        /// PID 1 of a pod's shared PID namespace, by the pod's id.
        Init = "init process",
        /// An unpacked layer, by chain id.
        Layer = "layer",
        /// The node's end of a pod's link, by name.
        Link = "link",
        /// A mount point.
        Mount = "mount",
        /// A pinned namespace of a pod: `net`, `ipc`, `uts`.
        Namespace = "namespace",
        /// A container's process, by the container's id.
        Process = "process",
        /// The packet rules, or a port of the node that they lead to a pod.
        Rules = "packet rules",
        /// A file that a pod gives its containers.
        SandboxFile = "pod file",
        /// A pod's directory, by id.
        SandboxFiles = "pod directory",
        /// A container's writable layer, by id.
        Snapshot = "snapshot",
    }
}

/// What mends a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Repair {
    /// A cleanup task removes it.
    Remove,
    /// The bridge is made again; the pods' links are attached to it.
    Bridge,
    /// The packet rules are put in place again, as a whole.
    Rules,
    /// A look at the pod completes it.
    Sandbox,
    /// The pod is brought down.
    Down,
    /// A look at the container makes its directories again.
    Container,
    /// The rows stop claiming it, so that the next pull fetches it again.
    Forget,
    /// Nothing does; the text says what an operator can do.
    Nothing(&'static str),
}

impl Repair {
    /// In words: what would be done, or what to do.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Remove => "it is removed",
            Self::Bridge => "it is made again, and the pods are attached to it",
            Self::Rules => "the rules are put in place again",
            Self::Sandbox => "the pod is completed",
            Self::Down => "the pod is brought down: without its init nothing can run in it",
            Self::Container => "it is made again: the container has not been started yet",
            Self::Forget => "its images are forgotten, so that the next pull fetches it again",
            Self::Nothing(what_to_do) => what_to_do,
        }
    }

    /// Whether the daemon can do something about it.
    #[must_use]
    pub fn is_possible(self) -> bool {
        !matches!(self, Self::Nothing(_))
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// How it differs.
    pub kind: Kind,
    /// What kind of thing.
    pub thing: Thing,
    /// Which one.
    pub name: String,
    /// Whose it is: an id, or empty when nobody knows.
    pub owner: String,
    /// The particulars.
    pub detail: String,
    /// What mends it.
    pub repair: Repair,
}

impl Difference {
    /// What makes two of them the same, whatever their particulars.
    #[must_use]
    pub fn key(&self) -> (Kind, Thing, &str) {
        (self.kind, self.thing, &self.name)
    }
}

/// An interface of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLink {
    /// Its name.
    pub name: String,
    /// `veth`, `bridge`, or another kind.
    pub kind: String,
    /// Its mark.
    pub alias: String,
}

/// A cgroup whose name is an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCgroup {
    /// Its path below the roots of the hierarchies.
    pub path: String,
    /// Who marked it, if anybody.
    pub mark: Option<String>,
    /// Whether there is a process in it.
    pub populated: bool,
}

/// What a look at a pod that should be up has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodSeen {
    /// Kinds of namespaces that are not pinned.
    pub pins_missing: Vec<&'static str>,
    /// Whether its `/dev/shm` is not mounted.
    pub shm_missing: bool,
    /// Generated files that are not there.
    pub files_missing: Vec<&'static str>,
    /// Its link, and what is not as it should be about it. A missing pin is not said again.
    pub link: Option<(String, Vec<String>)>,
    /// Whether the process that holds its PID namespace is gone.
    pub init_gone: bool,
    /// What plugins find wrong with their network in it. Nobody here can mend that.
    pub attachment_problem: Option<String>,
}

impl PodSeen {
    /// Whether everything is as it should be.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.pins_missing.is_empty()
            && !self.shm_missing
            && self.files_missing.is_empty()
            && !self.init_gone
            && self
                .link
                .as_ref()
                .is_none_or(|(_, problems)| problems.is_empty())
    }
}

/// What a look at a container has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSeen {
    /// Whether its process is gone.
    pub process_gone: bool,
    /// Files of its directory that are not there.
    pub files_missing: Vec<&'static str>,
}

/// What a look at the packet rules has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundRules {
    /// What is not as it should be about anything but ports.
    pub problems: Vec<String>,
    /// Ports that lead to pods, and policies of pods, in words.
    pub ports: BTreeSet<String>,
}

/// What exists.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Names in the directory of pods.
    pub sandbox_dirs: BTreeSet<String>,
    /// Names in the directory of containers.
    pub container_dirs: BTreeSet<String>,
    /// Names in the directory of writable layers.
    pub snapshots: BTreeSet<String>,
    /// Chain ids of layers on disk.
    pub layers: BTreeSet<String>,
    /// All interfaces of the node.
    pub links: Vec<FoundLink>,
    /// What is wrong with the bridge, if anything.
    pub bridge_problem: Option<(Kind, String)>,
    /// The packet rules, where there should be any.
    pub rules: Option<FoundRules>,
    /// Mount points below the state directory.
    pub mounts: Vec<String>,
    /// Cgroups named by an id, anywhere.
    pub cgroups: Vec<FoundCgroup>,
    /// Pods that were looked at, by id.
    pub pods: BTreeMap<String, PodSeen>,
    /// Containers that were looked at, by id.
    pub containers: BTreeMap<String, ContainerSeen>,
}

/// How far a row says that a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodIs {
    /// Being made, or being withdrawn: parts of it may exist.
    Changing,
    /// Up, and wished to be.
    Up,
    /// Down: its directory exists and nothing else.
    Down,
}

/// How far a row says that a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerIs {
    /// Parts of it may exist.
    Changing,
    /// Prepared, never started.
    Created,
    /// It has a process.
    Running,
    /// It has ended, and its cgroup is gone.
    Released,
}

/// What the rows say.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Our mark.
    pub marker: String,
    /// The state directory.
    pub state_dir: String,
    /// Our own cgroup.
    pub cgroup_root: String,
    /// The bridge.
    pub bridge: String,
    /// Pods by id.
    pub sandboxes: BTreeMap<String, PodIs>,
    /// Containers by id: their pod, and how they are.
    pub containers: BTreeMap<String, (String, ContainerIs)>,
    /// Containers that have a writable layer.
    pub snapshots: BTreeSet<String>,
    /// Layers by chain id, and whether they are said to be on disk.
    pub layers: BTreeMap<String, bool>,
    /// Images by id, and the layers they stand on.
    pub images: BTreeMap<String, Vec<String>>,
    /// Links with an address, and the bridge of each.
    pub links: BTreeMap<String, String>,
    /// Ports and policies that are pods', in the words of [`FoundRules::ports`], and whether they
    /// must be in place now.
    pub ports: BTreeMap<String, bool>,
}

/// All differences, those that others follow from first.
#[must_use]
pub fn compare(found: &Found, known: &Known) -> Vec<Difference> {
    let mut differences = Vec::new();
    differences.extend(bridge(found, known));
    if let Some(rules) = &found.rules {
        compare_rules(rules, known, &mut differences);
    }
    links(found, known, &mut differences);
    directories(found, known, &mut differences);
    mounts(found, known, &mut differences);
    cgroups(found, known, &mut differences);
    layers(found, known, &mut differences);
    for (id, seen) in &found.pods {
        if known.sandboxes.get(id) == Some(&PodIs::Up) {
            pod(id, seen, &mut differences);
            differences.extend(attachment(id, seen));
        }
    }
    containers(found, known, &mut differences);
    differences
}

fn orphan(thing: Thing, name: &str, owner: &str, detail: &str) -> Difference {
    Difference {
        kind: Kind::Orphan,
        thing,
        name: name.to_owned(),
        owner: owner.to_owned(),
        detail: detail.to_owned(),
        repair: Repair::Remove,
    }
}

fn bridge(found: &Found, known: &Known) -> Option<Difference> {
    let (kind, detail) = found.bridge_problem.clone()?;
    Some(Difference {
        kind,
        thing: Thing::Bridge,
        name: known.bridge.clone(),
        owner: String::new(),
        detail,
        repair: Repair::Bridge,
    })
}

fn compare_rules(found: &FoundRules, known: &Known, differences: &mut Vec<Difference>) {
    let mut differs = |kind, name: &str, detail: &str| {
        differences.push(Difference {
            kind,
            thing: Thing::Rules,
            name: name.to_owned(),
            owner: String::new(),
            detail: detail.to_owned(),
            repair: Repair::Rules,
        });
    };
    if !found.problems.is_empty() {
        differs(Kind::Wrong, &known.bridge, &found.problems.join("; "));
        return;
    }
    for port in found
        .ports
        .iter()
        .filter(|port| !known.ports.contains_key(*port))
    {
        differs(Kind::Orphan, port, "no pod has this");
    }
    for (port, must_be_there) in &known.ports {
        if *must_be_there && !found.ports.contains(port) {
            differs(
                Kind::Missing,
                port,
                "the pod has this, and the rules do not",
            );
        }
    }
}

fn links(found: &Found, known: &Known, differences: &mut Vec<Difference>) {
    for link in found
        .links
        .iter()
        .filter(|link| link.alias == known.marker && !known.marker.is_empty())
    {
        match link.kind.as_str() {
            "veth" if !known.links.contains_key(&link.name) => {
                let detail = "no pod has this link";
                differences.push(orphan(Thing::Link, &link.name, "", detail));
            }
            "ifb" if !known.links.keys().any(|name| is_shaper(&link.name, name)) => {
                let detail = "no pod is limited by this interface";
                differences.push(orphan(Thing::Link, &link.name, "", detail));
            }
            "bridge"
                if link.name != known.bridge && !known.links.values().any(|b| *b == link.name) =>
            {
                let detail = "a bridge of ours that no pod is on";
                differences.push(orphan(Thing::Bridge, &link.name, "", detail));
            }
            _ => {}
        }
    }
}

/// Whether an interface limits what is sent by a link: their names differ in the first letter.
fn is_shaper(shaper: &str, link: &str) -> bool {
    shaper.strip_prefix('i').is_some() && shaper.get(1..) == link.get(1..)
}

fn directories(found: &Found, known: &Known, differences: &mut Vec<Difference>) {
    let mut sweep = |thing, names: &BTreeSet<String>, known: &dyn Fn(&str) -> bool| {
        for name in names.iter().filter(|name| !known(name)) {
            differences.push(orphan(thing, name, name, "nothing has this directory"));
        }
    };
    sweep(Thing::SandboxFiles, &found.sandbox_dirs, &|name| {
        known.sandboxes.contains_key(name)
    });
    sweep(Thing::ContainerFiles, &found.container_dirs, &|name| {
        known.containers.contains_key(name)
    });
    sweep(Thing::Snapshot, &found.snapshots, &|name| {
        known.snapshots.contains(name) || known.containers.contains_key(name)
    });
    sweep(Thing::Layer, &found.layers, &|name| {
        known.layers.contains_key(name)
    });
}

/// The part of a mount point below the pods' directory, when it is one that a pod has: the pod's
/// id. `None` is a mount that we never make.
#[must_use]
pub fn pod_of_mount<'m>(state_dir: &str, mount_point: &'m str) -> Option<&'m str> {
    let below = mount_point
        .strip_prefix(state_dir)?
        .strip_prefix("/sandboxes/")?;
    let (id, part) = below.split_once('/')?;
    ["ns/net", "ns/ipc", "ns/uts", "ns/user", "shm"]
        .contains(&part)
        .then_some(id)
}

fn mounts(found: &Found, known: &Known, differences: &mut Vec<Difference>) {
    let ours = |point: &str| {
        let below = point.strip_prefix(&known.state_dir)?;
        // Containers mount their root on `rootfs`, each in a mount namespace of its own.
        let inside = ["/sandboxes/", "/containers/", "/rootfs/"]
            .iter()
            .any(|part| below.starts_with(part));
        (inside || below == "/rootfs").then(|| below.to_owned())
    };
    for point in &found.mounts {
        let Some(below) = ours(point) else {
            continue;
        };
        let mut parts = below.split('/').skip(1);
        let (place, id) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        // It goes with the directory that it is in.
        let swept = match place {
            "sandboxes" => found.sandbox_dirs.contains(id) && !known.sandboxes.contains_key(id),
            "containers" => found.container_dirs.contains(id) && !known.containers.contains_key(id),
            _ => false,
        };
        // Only a mount of the kind that pods have can come to be somebody's.
        let owner = pod_of_mount(&known.state_dir, point).unwrap_or_default();
        let expected = known.sandboxes.get(owner);
        if !swept && expected.is_none_or(|pod| *pod == PodIs::Down) {
            differences.push(orphan(Thing::Mount, point, owner, "nothing has this mount"));
        }
    }
}

fn cgroups(found: &Found, known: &Known, differences: &mut Vec<Difference>) {
    let root = format!("{}/", known.cgroup_root.trim_end_matches('/'));
    for cgroup in &found.cgroups {
        let Some(name) = slice::id_of(&cgroup.path) else {
            continue;
        };
        let ours = match &cgroup.mark {
            Some(mark) => *mark == known.marker && !known.marker.is_empty(),
            // One that an older version made, below the cgroup that is ours alone.
            None => root.len() > 1 && cgroup.path.starts_with(&root) && !cgroup.populated,
        };
        let has_row = known.sandboxes.contains_key(&name)
            || known
                .containers
                .get(&name)
                .is_some_and(|(_, is)| *is != ContainerIs::Released);
        if ours && !has_row {
            let detail = if cgroup.populated {
                "no container has this cgroup, and processes are in it"
            } else {
                "no container has this cgroup"
            };
            differences.push(orphan(Thing::Cgroup, &cgroup.path, &name, detail));
        }
    }
}

fn layers(found: &Found, known: &Known, differences: &mut Vec<Difference>) {
    for (chain_id, present) in &known.layers {
        if *present && !found.layers.contains(chain_id) {
            differences.push(Difference {
                kind: Kind::Missing,
                thing: Thing::Layer,
                name: chain_id.clone(),
                owner: String::new(),
                detail: "it is not on disk".into(),
                repair: Repair::Forget,
            });
        }
    }
    for (id, chain) in &known.images {
        let lacking = chain
            .iter()
            .find(|layer| known.layers.get(*layer) != Some(&true));
        if let Some(layer) = lacking {
            differences.push(Difference {
                kind: Kind::Wrong,
                thing: Thing::Image,
                name: id.clone(),
                owner: layer.clone(),
                detail: format!("its layer {layer} is not there"),
                repair: Repair::Forget,
            });
        }
    }
}

fn pod(id: &str, seen: &PodSeen, differences: &mut Vec<Difference>) {
    let mut push = |kind, thing, name: String, detail: String, repair| {
        differences.push(Difference {
            kind,
            thing,
            name,
            owner: id.to_owned(),
            detail,
            repair,
        });
    };
    if seen.init_gone {
        let detail = "the process that holds the pod's PID namespace is gone";
        push(
            Kind::Missing,
            Thing::Init,
            id.into(),
            detail.into(),
            Repair::Down,
        );
        // The rest goes with the pod.
        return;
    }
    for pin in &seen.pins_missing {
        let detail = format!("the pod's {pin} namespace is not pinned");
        push(
            Kind::Missing,
            Thing::Namespace,
            format!("{id}/ns/{pin}"),
            detail,
            Repair::Sandbox,
        );
    }
    if let Some((name, problems)) = &seen.link
        && !problems.is_empty()
    {
        push(
            Kind::Wrong,
            Thing::Link,
            name.clone(),
            problems.join("; "),
            Repair::Sandbox,
        );
    }
    if seen.shm_missing {
        let detail = "the pod's /dev/shm is not mounted".to_owned();
        push(
            Kind::Missing,
            Thing::Mount,
            format!("{id}/shm"),
            detail,
            Repair::Sandbox,
        );
    }
    for file in &seen.files_missing {
        push(
            Kind::Missing,
            Thing::SandboxFile,
            format!("{id}/{file}"),
            "containers cannot mount it".into(),
            Repair::Sandbox,
        );
    }
}

/// What plugins have found, unless the pod comes down anyway.
fn attachment(id: &str, seen: &PodSeen) -> Option<Difference> {
    let problem = seen.attachment_problem.as_ref()?;
    let what_to_do = "delete the pod: one that takes its place is connected anew";
    (!seen.init_gone).then(|| Difference {
        kind: Kind::Wrong,
        thing: Thing::Attachment,
        name: id.to_owned(),
        owner: id.to_owned(),
        detail: problem.clone(),
        repair: Repair::Nothing(what_to_do),
    })
}

const RESTART: Repair = Repair::Nothing("stop the container and create it anew");

fn containers(found: &Found, known: &Known, differences: &mut Vec<Difference>) {
    for (id, seen) in &found.containers {
        let Some((_, is)) = known.containers.get(id) else {
            continue;
        };
        let repair = match is {
            ContainerIs::Created => Repair::Container,
            ContainerIs::Running => RESTART,
            ContainerIs::Changing | ContainerIs::Released => continue,
        };
        let mut push = |thing, detail: String, repair| {
            differences.push(Difference {
                kind: Kind::Missing,
                thing,
                name: id.clone(),
                owner: id.clone(),
                detail,
                repair,
            });
        };
        if *is == ContainerIs::Running && seen.process_gone {
            let wait = "its end is about to be recorded; if this stays, restart the daemon";
            push(
                Thing::Process,
                "the container counts as running, and its process is gone".into(),
                Repair::Nothing(wait),
            );
            continue;
        }
        if !found.snapshots.contains(id) {
            push(
                Thing::Snapshot,
                "its writable layer is gone from the disk".into(),
                repair,
            );
        }
        if !seen.files_missing.is_empty() {
            let detail = format!("not there: {}", seen.files_missing.join(", "));
            push(Thing::ContainerFiles, detail, repair);
        }
    }
}

#[cfg(test)]
mod tests;
