//! Containers in a user namespace, which a test makes as the daemon does.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::thread::ThreadNameSpaceType;

use super::files::{nested_binds, with_mounts};
use super::*;
use crate::runtime::launch::{PodInitPlan, pod_init};
use crate::sys::nsfd::owner_of;
use crate::sys::userns::Holder;

const FIRST: u32 = 70_000;
const IDS: &str = "0 70000 65536";

fn holder() -> Holder {
    let holder = Holder::new(ThreadNameSpaceType::empty()).expect("a user namespace");
    holder.map(IDS, IDS).expect("maps");
    holder
}

fn maps() -> Value {
    json!([{"containerID": 0, "hostID": FIRST, "size": 65536}])
}

/// A plan of a container in the user namespace that `holder` has.
fn plan_in(holder: &Holder, image: &Image, script: &str) -> LaunchPlan {
    let mut plan = image.plan(&["sh", "-c", script]);
    edit(&mut plan, |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.push(json!({"type": "user", "path": holder.path("user")}));
        spec["linux"]["uidMappings"] = maps();
        spec["linux"]["gidMappings"] = maps();
    });
    plan
}

fn mapped(mut mount: Value) -> Value {
    mount["uidMappings"] = maps();
    mount["gidMappings"] = maps();
    mount
}

fn owner(path: &Path) -> u32 {
    fs::metadata(path).expect("there").uid()
}

#[test]
fn root_inside_is_nobody_outside_and_owns_what_is_the_images() {
    alone(|| {
        let (image, holder) = (Image::new(), holder());
        let script = "set -e; \
            for f in uid_map gid_map; do echo $(cat /proc/self/$f); done; id -u; \
            stat -c '%u:%g' /etc/passwd / /dev /dev/shm /proc/1; \
            echo x > /made; echo y >> /etc/passwd; busybox mkdir /bin/new; stat -c %u /made; \
            echo out > /dev/stdout; busybox head -c 2 /dev/zero | busybox wc -c; echo > /dev/null; \
            cat /proc/self/oom_score_adj; hostname; ls /secret; \
            (: > /proc/sys/kernel/hostname) 2>/dev/null && echo wrote; \
            busybox mknod /n c 1 3 || true";
        let mut plan = plan_in(&holder, &image, script);
        edit(&mut plan, |spec| {
            spec["process"]["oomScoreAdj"] = json!(17);
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 90, "hard": 95}]);
        });
        let outcome = run(&plan);
        let map = format!("0 {FIRST} 65536\n");
        let expected = format!(
            "{map}{map}0\n{}0\nout\n2\n17\nqlt-test\n",
            "0:0\n".repeat(5)
        );
        assert_eq!(outcome.stdout, expected, "{outcome:?}");
        assert!(
            outcome
                .stderr
                .contains("mknod: /n: Operation not permitted"),
            "{outcome:?}"
        );
        assert_eq!(owner(&image.path("upper/made")), FIRST);
        assert_eq!(owner(&image.path("upper/etc/passwd")), FIRST);
        assert_eq!(
            owner(&image.layer("etc/passwd")),
            0,
            "a shared layer was changed"
        );
        assert_eq!(fs::read_dir(image.path("mount")).expect("list").count(), 0);
    });
}

#[test]
fn all_its_namespaces_belong_to_the_user_namespace_and_execs_join_it() {
    alone(|| {
        let (image, holder) = (Image::new(), holder());
        let running = start(&plan_in(&holder, &image, "exec sleep 100"));
        let users = holder
            .open("user")
            .expect("opens")
            .metadata()
            .expect("stat")
            .ino();
        for kind in ["pid", "mnt", "net", "ipc", "uts", "cgroup"] {
            let path = format!("/proc/{}/ns/{kind}", running.started.pid);
            let namespace = fs::File::open(path).expect("opens");
            let owner = fs::File::from(owner_of(&namespace).expect("an owner"));
            assert_eq!(owner.metadata().expect("stat").ino(), users, "{kind}");
        }
        let script = "id -u; cat /proc/self/uid_map | busybox tr -s ' '; echo out > /dev/stdout; \
            echo x > /by-exec; busybox grep NoNewPrivs /proc/self/status";
        let mut inside = exec_plan(&["sh", "-c", script]);
        inside.users = Some((plan_maps(), plan_maps()));
        let outcome = running.exec(&inside).expect("runs");
        let expected = format!("0\n 0 {FIRST} 65536\nout\nNoNewPrivs:\t1\n");
        assert_eq!(outcome.stdout, expected, "{outcome:?}");
        assert_eq!(owner(&image.path("upper/by-exec")), FIRST);
        inside.user.user = "65536".into();
        let error = running.exec(&inside).expect_err("nobody");
        assert_eq!(
            error.message,
            "user 65536 is not among the ids of the pod's user namespace"
        );
        running.stop();
    });
}

fn plan_maps() -> Vec<oci_spec::runtime::LinuxIdMapping> {
    serde_json::from_value(maps()).expect("maps")
}

#[test]
fn volumes_are_the_containers_own_only_if_their_owners_are_mapped() {
    alone(|| {
        let (image, holder) = (Image::new(), holder());
        let made = |name: &str| {
            let directory = image.path(name);
            fs::create_dir(&directory).expect("mkdir");
            fs::write(directory.join("file"), "content").expect("write");
            fs::set_permissions(directory.join("file"), PermissionsExt::from_mode(0o600))
                .expect("chmod");
            directory
        };
        let script = "stat -c %u /mapped/file /plain/file /single /other/file; cat /mapped/file; \
            cat /plain/file; echo n > /mapped/new; echo n > /plain/new; echo n > /closed/new; \
            echo m >> /single; stat -c %u /mapped/new";
        let mut plan = plan_in(&holder, &image, script);
        let single = image.path("single");
        fs::write(&single, "s").expect("write");
        add_mount(
            &mut plan,
            mapped(bind(&made("a"), "/mapped", &["rbind", "rprivate"])),
        );
        add_mount(&mut plan, bind(&made("b"), "/plain", &["rbind"]));
        add_mount(
            &mut plan,
            mapped(bind(&made("c"), "/closed", &["rbind", "rro"])),
        );
        add_mount(&mut plan, mapped(bind(&single, "/single", &["rbind"])));
        // Another map than the pod's: what is 0 on the disk is the 7 of the container.
        let mut other = bind(&made("d"), "/other", &["rbind"]);
        let shifted = json!([{"containerID": 0, "hostID": FIRST + 7, "size": 10}]);
        other["uidMappings"] = shifted.clone();
        other["gidMappings"] = shifted;
        add_mount(&mut plan, other);
        let outcome = run(&plan);
        assert_eq!(outcome.stdout, "0\n65534\n0\n7\ncontent0\n", "{outcome:?}");
        for refused in [
            "can't open '/plain/file': Permission denied",
            "can't create /plain/new: Permission denied",
            "can't create /closed/new: Read-only file system",
        ] {
            assert!(outcome.stderr.contains(refused), "{refused}: {outcome:?}");
        }
        assert_eq!(
            owner(&image.path("a/new")),
            0,
            "the volume stays as it was on the disk"
        );
        assert_eq!(fs::read(&single).expect("read"), b"sm\n");
    });
}

#[test]
fn a_mapped_volume_can_be_read_only_with_all_that_is_below_it() {
    alone(|| {
        // Removed by the process that does not see what is mounted in it.
        let (image, holder) = (Image::new(), holder());
        with_mounts(|| {
            let volume = image.path("volume");
            // No tmpfs: before Linux 6.3 it maps no owners.
            nested_binds(&volume, &image.path("below"));
            for path in ["file", "sub/file"] {
                fs::write(volume.join(path), "x").expect("write");
            }
            for (option, refused) in [("ro", 1), ("rro", 2)] {
                let script = "echo x > /data/file; echo x > /data/sub/file; \
                              stat -c %u /data/file /data/sub/file";
                let mut plan = plan_in(&holder, &image, script);
                add_mount(
                    &mut plan,
                    mapped(bind(&volume, "/data", &["rbind", option])),
                );
                let outcome = run(&plan);
                let count = outcome.stderr.matches("Read-only file system").count();
                assert_eq!(count, refused, "{option}: {outcome:?}");
                assert_eq!(outcome.stdout, "0\n0\n", "{option}: {outcome:?}");
            }
        });
    });
}

#[test]
fn a_file_system_that_maps_no_owners_is_named() {
    alone(|| {
        let (image, holder) = (Image::new(), holder());
        let mut plan = plan_in(&holder, &image, "true");
        let source = Path::new("/proc/self");
        add_mount(&mut plan, mapped(bind(source, "/v", &["rbind"])));
        let error = refusal(&plan);
        assert_eq!(error.stage, "mount /v");
        assert!(
            error.message.contains("map the owners of \"/proc/self\""),
            "{error}"
        );
    });
}

#[test]
fn a_pod_in_a_user_namespace_has_an_init_of_its_own_and_a_terminal() {
    alone(|| {
        let (image, holder) = (Image::new(), holder());
        let init = pod_init(&PodInitPlan {
            user: Some(holder.path("user")),
            ..PodInitPlan::default()
        });
        let init = init.expect("starts");
        let status = fs::read_to_string(format!("/proc/{}/status", init.pid)).expect("read");
        assert!(status.contains(&format!("Uid:\t{FIRST}\t")), "{status}");
        let script = "cat /proc/1/comm; busybox tty; read line; echo got $line";
        let mut plan = plan_in(&holder, &image, script);
        plan.stdio.terminal = true;
        edit(&mut plan, |spec| {
            let path = json!(format!("/proc/{}/ns/pid", init.pid));
            spec["linux"]["namespaces"][0]["path"] = path;
            spec["process"]["terminal"] = json!(true);
        });
        let started = launch(&plan, None).expect("starts");
        let output = type_input(&started);
        assert_eq!(wait(&started), 0, "{output:?}");
        for word in ["quilt-pod", "/dev/pts/0", "got input"] {
            assert!(output.contains(word), "{output:?}");
        }
        let term = rustix::process::Signal::TERM;
        rustix::process::pidfd_send_signal(&init.pidfd, term).expect("kill");
        assert_eq!(wait(&init), 0);
    });
}
