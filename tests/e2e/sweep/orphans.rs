//! One orphan of each kind, and beside it a stranger that looks alike.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::mark_of;
use crate::support::{Node, cgroup, eventually, link};

const PRECIOUS: &str = "somebody needs this";

/// What a test has planted. Dropping it removes the strangers.
struct Planted {
    /// Paths that must go.
    orphans: Vec<PathBuf>,
    orphan_mounts: Vec<PathBuf>,
    orphan_links: Vec<String>,
    /// Paths that must stay.
    strangers: Vec<PathBuf>,
    stranger_mounts: Vec<PathBuf>,
    stranger_links: Vec<String>,
    foreign_cgroups: Vec<PathBuf>,
    sleeper: Option<Child>,
}

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn tmpfs(at: &Path) {
    fs::create_dir_all(at).expect("a directory of the test");
    let kind = Some("tmpfs");
    mount(kind, at, kind, MsFlags::empty(), Some("size=64k")).expect("root may mount");
}

fn bind(from: &Path, at: &Path) {
    fs::create_dir_all(at).expect("a directory of the test");
    let none = None::<&str>;
    mount(Some(from), at, none, MsFlags::MS_BIND, none).expect("root may mount");
}

fn mount_points() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(PathBuf::from).collect()
}

impl Planted {
    /// Everything at once; the daemon may run or not, its bridge exists.
    fn plant(node: &Node) -> Self {
        let mut planted = Self {
            orphans: vec![],
            orphan_mounts: vec![],
            orphan_links: vec![],
            strangers: vec![],
            stranger_mounts: vec![],
            stranger_links: vec![],
            foreign_cgroups: vec![],
            sleeper: None,
        };
        planted.directories(node);
        planted.mounts(node);
        planted.links(node);
        planted.cgroups(node);
        planted
    }

    fn directories(&mut self, node: &Node) {
        let (root, state) = (node.names.root(), node.names.state());
        let hex = id('a');
        for below in [
            state.join("containers").join(&hex),
            root.join("snapshots").join(&hex).join("upper"),
            root.join("layers").join(&hex).join("fs"),
        ] {
            fs::create_dir_all(&below).expect("a directory of the test");
            fs::write(below.join("file"), "x").expect("a file of the test");
        }
        for dir in [
            state.join("containers"),
            root.join("snapshots"),
            root.join("layers"),
        ] {
            self.orphans.push(dir.join(&hex));
        }
        // Names alike, in places where nothing is swept.
        for stranger in [
            root.join("strangers").join(&hex),
            node.path("volumes").join(&hex),
        ] {
            fs::create_dir_all(&stranger).expect("a directory of the test");
            self.strangers.push(stranger);
        }
    }

    fn mounts(&mut self, node: &Node) {
        let state = node.names.state();
        // A pod that nobody knows, with its shm, and something of somebody else mounted in it.
        let elsewhere = node.path("volumes").join("precious");
        fs::create_dir_all(&elsewhere).expect("a directory of the test");
        let precious = elsewhere.join("file");
        fs::write(&precious, PRECIOUS).expect("a file of the test");
        let pod = state.join("sandboxes").join(id('b'));
        tmpfs(&pod.join("shm"));
        bind(&elsewhere, &pod.join("deep/inside"));
        self.orphan_mounts
            .extend([pod.join("shm"), pod.join("deep/inside")]);
        self.orphans.push(pod);
        self.strangers.push(precious);
        // Mounts by themselves.
        tmpfs(&state.join("rootfs"));
        self.orphan_mounts.push(state.join("rootfs"));
        // Where no state directory is.
        let far = node.path("volumes").join("sandboxes").join(id('b'));
        tmpfs(&far.join("shm"));
        self.stranger_mounts.push(far.join("shm"));
    }

    fn links(&mut self, node: &Node) {
        let bridge = &node.names.bridge;
        let unique = &bridge[bridge.len() - 6..];
        let name = |letter: &str| format!("qlt{letter}{unique}");
        let mark = mark_of(node);
        let pair = |letter: &str| {
            let ends = (name(letter), name(&format!("{letter}p")));
            link::add_veth(&ends.0, &ends.1);
            ends
        };
        // Of a pod that is gone, one on the bridge and one that never got there.
        let (on_bridge, _) = pair("a");
        link::mark(&on_bridge, &mark);
        link::attach(&on_bridge, bridge);
        let (alone, _) = pair("b");
        link::mark(&alone, &mark);
        let old_bridge = name("c");
        link::add_bridge(&old_bridge);
        link::mark(&old_bridge, &mark);
        self.orphan_links.extend([on_bridge, alone, old_bridge]);
        // Nobody's, on our bridge; and another daemon's whose root begins like ours.
        let (nobodys, peer) = pair("d");
        link::attach(&nobodys, bridge);
        let (anothers, other_peer) = pair("e");
        link::mark(&anothers, &format!("{mark}2"));
        let anothers_bridge = name("f");
        link::add_bridge(&anothers_bridge);
        link::mark(&anothers_bridge, "quilt:/var/lib/another");
        self.stranger_links
            .extend([nobodys, peer, anothers, other_peer, anothers_bridge]);
    }

    fn cgroups(&mut self, node: &Node) {
        let mark = mark_of(node);
        let root = &node.names.cgroup_root;
        let foreign = format!("{root}-foreign");
        let marked = |path: &str, mark: &str| {
            let dirs = cgroup::make(path);
            for dir in &dirs {
                let dir = File::open(dir).expect("a cgroup of the test");
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::fsetxattr(dir, "trusted.quilt", mark.as_bytes(), flags)
                    .expect("cgroups have attributes");
            }
            dirs
        };
        // Below our own root without a mark, there with a process in it, and at a client's parent.
        self.orphans
            .extend(cgroup::make(&format!("{root}/pod/{}", id('c'))));
        self.orphans
            .extend(marked(&format!("{foreign}/{}", id('d')), &mark));
        let busy = marked(&format!("{root}/{}", id('e')), &mark);
        let mut sleeper = Command::new("sleep");
        let sleeper = sleeper.arg("1000").stdin(Stdio::null()).spawn();
        let sleeper = sleeper.expect("sleep runs");
        for dir in &busy {
            // A v1 cpuset without CPUs takes nobody.
            let _refused = fs::write(dir.join("cgroup.procs"), sleeper.id().to_string());
        }
        self.sleeper = Some(sleeper);
        self.orphans.extend(busy);
        // Another runtime's container, and another daemon's.
        self.foreign_cgroups
            .extend(cgroup::make(&format!("{foreign}/{}", id('f'))));
        let another = format!("{foreign}/pod/{}", id('1'));
        self.foreign_cgroups.extend(marked(&another, "quilt:/x"));
    }

    /// What of ours is still there.
    fn left(&self) -> Vec<String> {
        let mounts = mount_points();
        let paths = self.orphans.iter().filter(|path| path.exists());
        let mounts = self.orphan_mounts.iter().filter(|at| mounts.contains(at));
        let links = self.orphan_links.iter().filter(|name| link::exists(name));
        paths
            .chain(mounts)
            .map(|path| path.display().to_string())
            .chain(links.cloned())
            .collect()
    }

    /// What of the strangers is gone.
    fn harmed(&self) -> Vec<String> {
        let mounts = mount_points();
        let paths = self.strangers.iter().chain(&self.foreign_cgroups);
        let paths = paths.filter(|path| !path.exists());
        let unmounted = self.stranger_mounts.iter();
        let unmounted = unmounted.filter(|at| !mounts.contains(at));
        let links = self.stranger_links.iter();
        paths
            .chain(unmounted)
            .map(|path| path.display().to_string())
            .chain(links.filter(|name| !link::exists(name)).cloned())
            .collect()
    }

    async fn orphans_go_and_strangers_stay(&self) {
        let left = std::cell::RefCell::new(vec![]);
        let gone = crate::support::wait::appears(crate::support::wait::BOUND, || async {
            left.replace(self.left());
            left.borrow().is_empty().then_some(())
        });
        assert!(gone.await.is_some(), "still there: {:?}", left.borrow());
        assert_eq!(self.harmed(), Vec::<String>::new(), "of somebody else");
        let precious = self.strangers.iter().find(|path| path.is_file());
        let text = fs::read_to_string(precious.expect("one is a file")).expect("a file");
        assert_eq!(text, PRECIOUS);
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        if let Some(mut sleeper) = self.sleeper.take() {
            let _ended = sleeper.kill();
            let _reaped = sleeper.wait();
        }
        for at in self.stranger_mounts.iter().chain(&self.orphan_mounts) {
            let _gone = umount2(at, MntFlags::MNT_DETACH);
        }
        for name in self.stranger_links.iter().chain(&self.orphan_links) {
            link::delete(name);
        }
        let mut parents = vec![];
        for dir in self.foreign_cgroups.iter().chain(&self.orphans) {
            if dir.to_string_lossy().contains("-foreign/") {
                let _gone = fs::remove_dir(dir);
                parents.extend(dir.ancestors().skip(1).take(2).map(Path::to_owned));
            }
        }
        for parent in parents {
            if parent.to_string_lossy().contains("-foreign") {
                let _gone = fs::remove_dir(parent);
            }
        }
    }
}

#[tokio::test]
async fn what_has_no_row_goes_at_the_start_and_strangers_stay() {
    let mut node = Node::start().await;
    let pod = node.pod("lives").await;
    let main = pod.idle("main").await;
    node.kill();
    let planted = Planted::plant(&node);
    node.restart().await;
    planted.orphans_go_and_strangers_stay().await;
    assert_eq!(node.cri.output(&main, "echo works").await, "works");
    let after = node.check();
    assert_eq!((after.status, after.found.len()), (0, 0), "{after:?}");
}

#[tokio::test]
async fn what_has_no_row_goes_every_now_and_then_and_strangers_stay() {
    let mut node = Node::prepare("[cleanup]\ninterval_s = 1\n");
    node.spawn();
    node.answers().await;
    let pod = node.pod("lives").await;
    let main = pod.idle("main").await;
    let planted = Planted::plant(&node);
    planted.orphans_go_and_strangers_stay().await;
    assert_eq!(node.cri.output(&main, "echo works").await, "works");
    // Several runs, and none has touched what lives.
    let status = node.cri.pod_status(&pod.id).await.expect("a pod");
    assert_eq!(status.state, 0, "ready");
}

#[tokio::test]
async fn what_cannot_be_removed_is_told_and_goes_when_it_can() {
    let mut node = Node::prepare("[cleanup]\ninterval_s = 0\n");
    node.spawn();
    node.answers().await;
    let unique = node.names.bridge[4..].to_owned();
    let (bridge, port, peer) = (
        format!("qlg{unique}"),
        format!("qlh{unique}"),
        format!("qli{unique}"),
    );
    link::add_bridge(&bridge);
    link::mark(&bridge, &mark_of(&node));
    link::add_veth(&port, &peer);
    link::attach(&port, &bridge);

    let said = node.check_and_repair();
    let still_there = link::exists(&bridge) && link::exists(&port);
    link::delete(&port);
    assert!(still_there, "a bridge with somebody's port is left alone");
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.has(&[("orphan", "bridge")]), "{said:?}");
    let error = said.differences[0]["error"].as_str().expect("a text");
    assert!(error.contains(&port), "it says what is in the way: {error}");
    // Its job tries again, without anybody asking.
    eventually("the bridge goes", || async {
        (!link::exists(&bridge)).then_some(())
    })
    .await;
}
