//! The comparison, at whatever may be found and known.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const STATE: &str = "/run/q";
const MARK: &str = "quilt:/var/lib/q";
const ROOT: &str = "/quilt";

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn known() -> Known {
    Known {
        marker: MARK.into(),
        state_dir: STATE.into(),
        cgroup_root: ROOT.into(),
        bridge: "q0".into(),
        ..Known::default()
    }
}

fn link(name: &str, kind: &str, alias: &str) -> FoundLink {
    FoundLink {
        name: name.into(),
        kind: kind.into(),
        alias: alias.into(),
    }
}

fn cgroup(path: &str, mark: Option<&str>, populated: bool) -> FoundCgroup {
    FoundCgroup {
        path: path.into(),
        mark: mark.map(str::to_owned),
        populated,
    }
}

fn names(differences: &[Difference]) -> Vec<(&'static str, &str)> {
    differences
        .iter()
        .map(|one| (one.thing.as_str(), one.name.as_str()))
        .collect()
}

#[test]
fn links_are_ours_by_their_mark_alone() {
    let mut known = known();
    known.links.insert("qa".into(), "q-old".into());
    let found = Found {
        links: vec![
            link("qa", "veth", MARK),
            link("qb", "veth", MARK),
            link("qc", "veth", "quilt:/var/lib/q2"),
            link("qd", "veth", ""),
            link("q0", "bridge", MARK),
            link("q-old", "bridge", MARK),
            link("q-older", "bridge", MARK),
            link("qe", "dummy", MARK),
        ],
        ..Found::default()
    };
    let differences = compare(&found, &known);
    assert_eq!(names(&differences), [("link", "qb"), ("bridge", "q-older")]);
    assert!(differences.iter().all(|one| one.kind == Kind::Orphan));
}

#[test]
fn a_cgroup_of_anybody_else_is_left_alone_whatever_its_name() {
    let mut known = known();
    let pod = id('9');
    known.sandboxes.insert(pod.clone(), PodIs::Up);
    let containers = [
        (id('1'), ContainerIs::Running),
        (id('2'), ContainerIs::Released),
        (id('3'), ContainerIs::Created),
    ];
    for (container, is) in containers {
        known.containers.insert(container, (pod.clone(), is));
    }
    let at = |parent: &str, digit| format!("{parent}/{}", id(digit));
    let found = Found {
        cgroups: vec![
            cgroup(&at("/kubepods", '1'), Some(MARK), true),
            cgroup(&at("/kubepods", '2'), Some(MARK), false),
            cgroup(&at("/kubepods", '3'), Some(MARK), false),
            cgroup(&at("/kubepods", '4'), Some(MARK), true),
            cgroup(&at("/kubepods", '5'), Some("quilt:/other"), false),
            cgroup(&at("/kubepods", '6'), None, false),
            cgroup(&at("/quilt/pod", '7'), None, false),
            cgroup(&at("/quilt", '8'), None, true),
            cgroup(&at("/quilt", 'a'), Some("quilt:/other"), false),
            cgroup(&at("/quilted", 'b'), None, false),
            cgroup(&at("/quilt", '9'), Some(MARK), true),
        ],
        ..Found::default()
    };
    assert_eq!(
        names(&compare(&found, &known)),
        [
            ("cgroup", at("/kubepods", '2').as_str()),
            ("cgroup", &at("/kubepods", '4')),
            ("cgroup", &at("/quilt/pod", '7')),
        ]
    );
}

#[test]
fn a_mount_goes_with_its_directory_or_by_itself() {
    let mut known = known();
    known.sandboxes.insert("up".into(), PodIs::Up);
    known.sandboxes.insert("down".into(), PodIs::Down);
    let mount = |below: &str| format!("{STATE}{below}");
    let found = Found {
        sandbox_dirs: ["up", "down", "gone"].map(str::to_owned).into(),
        mounts: vec![
            mount(""),
            mount("/sandboxes"),
            mount("/sandboxes/up/ns/net"),
            mount("/sandboxes/up/shm"),
            mount("/sandboxes/up/else"),
            mount("/sandboxes/down/ns/uts"),
            mount("/sandboxes/gone/ns/net"),
            mount("/sandboxes/nowhere/shm"),
            mount("/containers/x/y"),
            mount("/rootfs"),
            mount("/shim/x"),
            "/run/q2/sandboxes/x/shm".into(),
        ],
        ..Found::default()
    };
    let differences = compare(&found, &known);
    let mounts: Vec<_> = differences
        .iter()
        .filter(|one| one.thing == Thing::Mount)
        .map(|one| (one.name.as_str(), one.owner.as_str()))
        .collect();
    assert_eq!(
        mounts,
        [
            (mount("/sandboxes/up/else").as_str(), ""),
            (&mount("/sandboxes/down/ns/uts"), "down"),
            (&mount("/sandboxes/nowhere/shm"), "nowhere"),
            (&mount("/containers/x/y"), ""),
            (&mount("/rootfs"), ""),
        ]
    );
    let directories: Vec<_> = differences
        .iter()
        .filter(|one| one.thing == Thing::SandboxFiles)
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(directories, ["gone"]);
}

#[test]
fn a_lost_layer_is_said_once_and_not_again_for_its_image() {
    let mut known = known();
    known.layers.insert("base".into(), true);
    known.layers.insert("top".into(), true);
    known.layers.insert("coming".into(), false);
    known
        .images
        .insert("image".into(), vec!["top".into(), "base".into()]);
    known
        .images
        .insert("half".into(), vec!["coming".into(), "base".into()]);
    let found = Found {
        layers: ["base".to_owned()].into(),
        ..Found::default()
    };
    let differences = compare(&found, &known);
    assert_eq!(names(&differences), [("layer", "top"), ("image", "half")]);
}

#[test]
fn only_a_pod_that_is_up_lacks_anything() {
    let seen = PodSeen {
        pins_missing: vec!["net"],
        shm_missing: true,
        files_missing: vec!["hosts"],
        link: Some(("q1".into(), vec!["it is down".into()])),
        init_gone: false,
        attachment_problem: Some("no link".into()),
    };
    let mut found = Found::default();
    found.pods.insert("p".into(), seen.clone());
    let count = |found: &Found, is| {
        let mut known = known();
        known.sandboxes.insert("p".into(), is);
        compare(found, &known).len()
    };
    assert_eq!(count(&found, PodIs::Up), 5);
    assert_eq!(count(&found, PodIs::Changing), 0);
    assert_eq!(count(&found, PodIs::Down), 0);
    let dead = PodSeen {
        init_gone: true,
        ..seen
    };
    found.pods.insert("p".into(), dead);
    assert_eq!(count(&found, PodIs::Up), 1, "the rest goes with the pod");
}

fn pod_is() -> impl Strategy<Value = PodIs> {
    select(vec![PodIs::Changing, PodIs::Up, PodIs::Down])
}

fn container_is() -> impl Strategy<Value = ContainerIs> {
    select(vec![
        ContainerIs::Changing,
        ContainerIs::Created,
        ContainerIs::Running,
        ContainerIs::Released,
    ])
}

fn some_id() -> impl Strategy<Value = String> {
    select(('a'..='f').map(id).collect::<Vec<_>>())
}

fn some_mark() -> impl Strategy<Value = Option<String>> {
    select(vec![None, Some(MARK.to_owned()), Some("quilt:/x".into())])
}

fn some_known() -> impl Strategy<Value = Known> {
    (
        btree_map(some_id(), pod_is(), 0..4),
        btree_map(some_id(), (some_id(), container_is()), 0..4),
        btree_set(some_id(), 0..4),
        btree_map(some_id(), any::<bool>(), 0..4),
        btree_map(some_id(), Just("q0".to_owned()), 0..4),
    )
        .prop_map(|(sandboxes, containers, snapshots, layers, links)| Known {
            sandboxes,
            containers,
            snapshots,
            layers,
            links,
            ..known()
        })
}

fn some_found() -> impl Strategy<Value = Found> {
    let links = vec((some_id(), some_mark()), 0..6);
    let parents = select(vec!["/quilt", "/quilt/pod1", "/kubepods/pod1", ""]);
    let cgroups = vec((parents, some_id(), some_mark(), any::<bool>()), 0..8);
    let places = select(vec![
        "/run/q/sandboxes",
        "/run/q/containers",
        "/run/q",
        "/mnt",
    ]);
    let parts = select(vec!["ns/net", "shm", "x"]);
    let mounts = vec((places, some_id(), parts), 0..8);
    let sets = || btree_set(some_id(), 0..5);
    (links, cgroups, mounts, sets(), sets(), sets(), sets()).prop_map(
        |(links, cgroups, mounts, sandbox_dirs, container_dirs, snapshots, layers)| Found {
            links: links
                .into_iter()
                .map(|(name, mark)| link(&name, "veth", &mark.unwrap_or_default()))
                .collect(),
            cgroups: cgroups
                .into_iter()
                .map(|(parent, id, mark, populated)| FoundCgroup {
                    path: format!("{parent}/{id}"),
                    mark,
                    populated,
                })
                .collect(),
            mounts: mounts
                .into_iter()
                .map(|(place, id, part)| format!("{place}/{id}/{part}"))
                .collect(),
            sandbox_dirs,
            container_dirs,
            snapshots,
            layers,
            ..Found::default()
        },
    )
}

proptest! {
    /// What a row stands for is never removed.
    #[test]
    fn nothing_known_is_an_orphan(found in some_found(), known in some_known()) {
        for one in compare(&found, &known) {
            if one.kind != Kind::Orphan {
                continue;
            }
            let name = &one.name;
            let claimed = match one.thing {
                Thing::Link => known.links.contains_key(name),
                Thing::SandboxFiles => known.sandboxes.contains_key(name),
                Thing::ContainerFiles => known.containers.contains_key(name),
                Thing::Snapshot => known.snapshots.contains(name),
                Thing::Layer => known.layers.contains_key(name),
                Thing::Cgroup => {
                    let id = &slice::id_of(name).expect("an id");
                    let container = known.containers.get(id);
                    known.sandboxes.contains_key(id)
                        || container.is_some_and(|(_, is)| *is != ContainerIs::Released)
                }
                Thing::Mount => pod_of_mount(STATE, name)
                    .and_then(|id| known.sandboxes.get(id))
                    .is_some_and(|is| *is != PodIs::Down),
                other => return Err(TestCaseError::fail(format!("an orphan {}", other.as_str()))),
            };
            prop_assert!(!claimed, "{one:?}");
        }
    }

    /// What does not carry our mark, or lie where only we put things, is never in the list.
    #[test]
    fn nothing_of_anybody_else_is_in_the_list(found in some_found(), known in some_known()) {
        for one in compare(&found, &known) {
            let ours = match one.thing {
                Thing::Link => found
                    .links
                    .iter()
                    .any(|link| link.name == one.name && link.alias == MARK),
                Thing::Mount => one.name.starts_with("/run/q/"),
                Thing::Cgroup => found.cgroups.iter().any(|cgroup| {
                    cgroup.path == one.name
                        && match &cgroup.mark {
                            Some(mark) => mark == MARK,
                            None => one.name.starts_with("/quilt/") && !cgroup.populated,
                        }
                }),
                _ => true,
            };
            prop_assert!(ours, "{one:?}");
        }
    }
}
