//! Images that are mounted in a container: merged, read-only, and nothing else of the node.

use super::*;
use crate::runtime::plan::ImageVolume;
use crate::runtime::rootfs::{OverlayInterface, Site};
use crate::runtime::{image_volume, rootfs};

/// Two layers: the upper one hides a file of the lower one and links out of the image.
fn layers(image: &Image) -> Vec<PathBuf> {
    let (below, above) = (image.path("volume/below"), image.path("volume/above"));
    fs::create_dir_all(below.join("data")).expect("mkdir");
    fs::create_dir_all(above.join("data")).expect("mkdir");
    fs::write(below.join("data/kept"), "kept\n").expect("write");
    fs::write(below.join("data/hidden"), "").expect("write");
    fs::copy("/bin/busybox", below.join("busybox")).expect("busybox-static is installed");
    let whiteout = rustix::fs::makedev(0, 0);
    let device = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::empty();
    let path = above.join("data/hidden");
    rustix::fs::mknodat(rustix::fs::CWD, path, device, mode, whiteout).expect("mknod");
    let path = above.join("null");
    let null = rustix::fs::makedev(1, 3);
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, path, device, mode, null).expect("mknod");
    symlink("/data", above.join("absolute")).expect("symlink");
    symlink("../../../../data", above.join("climbing")).expect("symlink");
    symlink("/proc/self/root", above.join("magic")).expect("symlink");
    vec![above, below]
}

fn mount_image(plan: &mut LaunchPlan, lower: &[PathBuf], sub_path: &str, destination: &str) {
    let number = plan.image_volumes.len().to_string();
    plan.image_volumes.push(ImageVolume {
        lower: lower.to_vec(),
        copy: None,
        sub_path: sub_path.into(),
    });
    let options = ["rprivate", "ro", "nodev"];
    let mount = json!({"destination": destination, "type": "image", "source": number,
        "options": options});
    add_mount(plan, mount);
}

#[test]
fn an_image_is_merged_read_only_and_can_be_executed() {
    alone(|| {
        let image = Image::new();
        let layers = layers(&image);
        let script = "ls /v/data; cat /v/data/kept; /v/busybox echo ran
            echo x > /v/new; echo x > /v/null
            busybox grep -q ' /v overlay ro,nodev' /proc/mounts && echo marked";
        let mut plan = image.plan(&["sh", "-c", script]);
        mount_image(&mut plan, &layers, "", "/v");
        let outcome = run(&plan);
        // The whiteout hides, and nothing of it shows.
        assert_eq!(outcome.stdout, "kept\nkept\nran\nmarked\n", "{outcome:?}");
        let refused = [
            "can't create /v/new: Read-only file system",
            "can't create /v/null: Permission denied",
        ];
        for refused in refused {
            assert!(outcome.stderr.contains(refused), "{outcome:?}");
        }
        let left = fs::read_dir(image.path("mount")).expect("list").count();
        assert_eq!(left, 0, "the node sees no mount");
    });
}

#[test]
fn a_sub_path_is_resolved_in_the_image_alone() {
    alone(|| {
        let image = Image::new();
        let layers = layers(&image);
        let mut plan = image.plan(&["sh", "-c", "cat /a/kept /b/kept /c/kept; ls /c /d"]);
        mount_image(&mut plan, &layers, "data", "/a");
        mount_image(&mut plan, &layers, "absolute", "/b");
        mount_image(&mut plan, &layers, "climbing", "/c");
        // One layer and none: both are less than the kernel stacks.
        mount_image(&mut plan, &layers[..1], "data", "/d");
        mount_image(&mut plan, &[], "", "/e");
        assert_eq!(run(&plan).stdout, "kept\nkept\nkept\n/c:\nkept\n\n/d:\n");
    });
}

#[test]
fn a_file_is_mounted_as_one_and_nothing_else_is() {
    alone(|| {
        let image = Image::new();
        let layers = layers(&image);
        let mut plan = image.plan(&["sh", "-c", "cat /f /new/g; echo x >/f"]);
        mount_image(&mut plan, &layers, "data/kept", "/f");
        mount_image(&mut plan, &layers, "climbing/kept", "/new/g");
        let outcome = run(&plan);
        assert_eq!(outcome.stdout, "kept\nkept\n");
        assert!(outcome.stderr.contains("Read-only"), "{outcome:?}");
        let mut plan = image.plan(&["true"]);
        mount_image(&mut plan, &layers, "null", "/v");
        let error = refusal(&plan);
        assert!(error.message.contains("neither"), "{error}");
    });
}

#[test]
fn a_copy_stands_for_the_layers_of_an_image() {
    alone(|| {
        let image = Image::new();
        let copy = image.path("copy");
        fs::create_dir_all(copy.join("data")).expect("mkdir");
        fs::write(copy.join("data/kept"), "copied\n").expect("write");
        symlink("../../../../data", copy.join("climbing")).expect("symlink");
        let script = "cat /a/data/kept /b/kept /c; echo x >/a/new";
        let mut plan = image.plan(&["sh", "-c", script]);
        for (path, destination) in [("", "/a"), ("climbing", "/b"), ("data/kept", "/c")] {
            mount_image(&mut plan, &[], path, destination);
        }
        for volume in &mut plan.image_volumes {
            volume.copy = Some(copy.clone());
        }
        let outcome = run(&plan);
        assert_eq!(outcome.stdout, "copied\ncopied\ncopied\n");
        assert!(outcome.stderr.contains("Read-only"), "{outcome:?}");
    });
}

#[test]
fn what_is_not_in_the_image_is_refused_at_its_mount() {
    alone(|| {
        let image = Image::new();
        let layers = layers(&image);
        for missing in ["nowhere", "data/hidden", "magic", "busybox/x"] {
            let mut plan = image.plan(&["true"]);
            mount_image(&mut plan, &layers, missing, "/v");
            let error = refusal(&plan);
            assert_eq!(error.stage, "image volume /v", "{error}");
            assert!(error.message.contains(missing), "{error}");
            assert!(error.is_image_volume_error());
        }
        let mut plan = image.plan(&["true"]);
        mount_image(&mut plan, &layers, "", "/v");
        plan.image_volumes.clear();
        let error = refusal(&plan);
        assert!(error.message.contains("no image number 0"), "{error}");
    });
}

#[test]
fn a_check_says_the_same_and_leaves_nothing() {
    alone(|| {
        let image = Image::new();
        let layers = layers(&image);
        let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let fds = || fs::read_dir("/proc/self/fd").expect("list").count();
        let before = (mounts(), fds());
        let check = |lower: &[PathBuf], sub_path: &str| {
            let volume = ImageVolume {
                lower: lower.to_vec(),
                copy: None,
                sub_path: sub_path.into(),
            };
            image_volume::check(&volume, &image.path("mount"))
        };
        check(&layers, "climbing").expect("is there");
        check(&[], "").expect("is there");
        check(&layers, "data/kept").expect("is there");
        let error = check(&layers, "data/kept/x").expect_err("below a file");
        assert_eq!(error.errno, Some(libc::ENOTDIR), "{error}");
        let error = check(&[image.path("gone")], "").expect_err("no layer");
        assert!(error.message.contains("gone"), "{error}");
        assert_eq!((mounts(), fds()), before);
    });
}

#[test]
fn the_older_overlay_interface_gives_the_same_image() {
    alone(|| {
        let image = Image::new();
        let volume = ImageVolume {
            lower: layers(&image),
            copy: None,
            sub_path: "climbing".into(),
        };
        let namespaces = rustix::thread::ThreadNameSpaceType::MOUNT;
        let child = crate::sys::clone::spawn(namespaces, None, |_| {
            rootfs::isolate_propagation().expect("private");
            let mount_point = image.path("mount");
            let site = Site {
                mount_point: &mount_point,
                with: OverlayInterface::OnePage,
                users: None,
            };
            let open = image_volume::open(&volume, site);
            let tree = open.expect("assembles");
            let kept = rustix::fs::statat(&tree, "kept", rustix::fs::AtFlags::empty());
            let cleared = fs::read_dir(mount_point).expect("list").count() == 0;
            i32::from(kept.is_err() || !cleared)
        });
        let child = child.expect("clone");
        let started = Started {
            pid: child.pid,
            pidfd: child.pidfd,
            terminal: None,
            identity: None,
        };
        assert_eq!(wait(&started), 0);
    });
}
