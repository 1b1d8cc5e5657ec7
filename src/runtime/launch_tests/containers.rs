//! What a container's first process is: its ids, namespaces, limits, command, and its errors.

use super::*;

#[test]
fn a_command_runs_and_its_exit_code_is_seen() {
    alone(|| {
        let image = Image::new();
        let outcome = image.sh("echo out; echo err >&2; exit 7");
        assert_eq!(
            outcome,
            Outcome {
                code: 7,
                stdout: "out\n".into(),
                stderr: "err\n".into()
            }
        );
        assert_eq!(
            image.sh("kill -9 $$; exit 8").code,
            8,
            "PID 1 cannot kill itself"
        );
    });
}

#[test]
fn it_is_pid_one_of_its_own_namespaces() {
    alone(|| {
        let image = Image::new();
        let outcome = image.sh("echo $$; hostname; cat /proc/1/comm; ls /sys/class/net");
        assert_eq!(outcome.stdout, "1\nqlt-test\nsh\nlo\n");
        let mine = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).expect("readlink");
        for kind in ["pid", "mnt", "ipc", "uts", "net", "cgroup"] {
            let script = format!("busybox readlink /proc/self/ns/{kind}");
            let theirs = image.sh(&script).stdout;
            assert_ne!(theirs.trim(), mine(kind).to_string_lossy(), "{kind}");
        }
    });
}

#[test]
fn nothing_is_left_of_it_on_the_node() {
    alone(|| {
        let image = Image::new();
        let fds = || fs::read_dir("/proc/self/fd").expect("list").count();
        // The node has other mounts, which come and go as they like.
        let ours = image.directory.path().display().to_string();
        let mounts = || {
            let all = fs::read_to_string("/proc/self/mountinfo").expect("read");
            all.lines().filter(|line| line.contains(&ours)).count()
        };
        let namespaces = || {
            ["pid_for_children", "mnt", "net", "ipc", "uts", "cgroup"]
                .map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).expect("readlink"))
        };
        let _ = image.sh("true");
        let before = (fds(), mounts(), namespaces());
        for _ in 0..3 {
            assert_eq!(image.sh("true").code, 0);
            refusal(&image.plan(&["/nope"]));
        }
        let running = start(&image.plan(&["sleep", "100"]));
        assert_eq!(running.exec(&exec_plan(&["true"])).expect("runs").code, 0);
        running.exec(&exec_plan(&["/nope"])).expect_err("fails");
        assert_eq!(running.stop(), 128 + 9);
        assert_eq!((fds(), mounts(), namespaces()), before);
        let children = rustix::process::waitpid(None, rustix::process::WaitOptions::NOHANG);
        assert_eq!(children.err(), Some(rustix::io::Errno::CHILD));
    });
}

#[test]
fn a_bad_command_is_told_from_other_failures() {
    alone(|| {
        let image = Image::new();
        fs::write(image.layer("bin/data"), "no program").expect("write");
        fs::write(image.layer("bin/script"), "#!/bin/absent\n").expect("write");
        fs::write(image.layer("bin/text"), "no program").expect("write");
        for name in ["script", "text"] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(image.layer("bin").join(name), mode).expect("chmod");
        }
        symlink("/proc/self/exe", image.layer("bin/self")).expect("symlink");
        for (command, message) in [
            ("/nope", "exec \"/nope\": no such file or directory"),
            (
                "nope",
                "exec \"nope\" (searched in \"/bin:/usr/bin\"): no such file or directory",
            ),
            ("/bin/data", "exec \"/bin/data\": permission denied"),
            ("data", "exec \"data\": permission denied"),
            ("/bin", "exec \"/bin\": permission denied"),
            ("text", "exec \"text\": exec format error"),
            ("", "exec \"\": no such file or directory"),
            ("/etc/passwd/x", "exec \"/etc/passwd/x\": not a directory"),
            (
                "/bin/script",
                "exec \"/bin/script\": its interpreter or loader: no such file or directory",
            ),
            ("self", "exec \"self\": too many symbolic links encountered"),
        ] {
            let error = refusal(&image.plan(&[command]));
            assert_eq!(error.message, message);
            assert_eq!(error.stage, "exec");
            assert!(error.is_command_error());
        }
        assert!(refusal(&image.plan(&["/nope"])).is_command_not_found());
        assert!(!refusal(&image.plan(&["text"])).is_command_not_found());
    });
}

#[test]
fn a_failure_names_its_stage() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&["true"]);
        add_mount(
            &mut plan,
            bind(Path::new("/qlt-absent"), "/data", &["rbind"]),
        );
        let error = refusal(&plan);
        assert_eq!(error.stage, "mount /data");
        assert_eq!(
            error.message,
            "bind source \"/qlt-absent\": no such file or directory"
        );

        let mut plan = image.plan(&["true"]);
        plan.rootfs.lower[0] = image.path("absent");
        assert_eq!(refusal(&plan).stage, "rootfs");

        let mut plan = image.plan(&["true"]);
        plan.cgroup
            .v1_tasks_files
            .push("/sys/fs/cgroup/pids/qlt-absent/tasks".into());
        assert_eq!(refusal(&plan).stage, "cgroup");

        let mut plan = image.plan(&["true"]);
        edit(&mut plan, |spec| {
            spec["linux"]["namespaces"][4]["path"] = json!("/proc/self/ns/ipc");
        });
        assert_eq!(refusal(&plan).stage, "namespace");

        let mut plan = image.plan(&["true"]);
        plan.user.user = "bob".into();
        let error = refusal(&plan);
        assert_eq!(
            error.message,
            "user \"bob\" is not in the image's /etc/passwd"
        );

        let mut plan = image.plan(&["true"]);
        let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 1u64 << 40, "hard": 1u64 << 40}]);
        edit(&mut plan, |spec| spec["process"]["rlimits"] = limit);
        let error = refusal(&plan);
        assert!(
            error
                .message
                .starts_with("set RLIMIT_NOFILE to soft 1099511627776"),
            "{error}"
        );
    });
}

#[test]
fn the_user_is_looked_up_in_the_image() {
    alone(|| {
        let image = Image::new();
        let ids = |user: &str, group: Option<&str>, merge: bool| {
            let mut plan = image.plan(&["sh", "-c", "id -u; id -g; id -G; echo $HOME"]);
            plan.user = PlanUser {
                user: user.into(),
                group: group.map(Into::into),
                additional_gids: vec![1000],
                merge_image_groups: merge,
            };
            run(&plan).stdout.replace('\n', "|")
        };
        assert_eq!(ids("", None, false), "0|0|0 1000|/root|");
        assert_eq!(ids("web", None, false), "33|44|44 1000|/srv/web|");
        assert_eq!(ids("33", None, true), "33|44|44 50 1000|/srv/web|");
        assert_eq!(ids("4321", Some("logs"), true), "4321|50|50 1000|/|");
        let (streams, stdout, stderr) = streams();
        let mut plan = image.plan(&["true"]);
        plan.user.user = "web".into();
        let started = launch(&plan, Some(streams)).expect("starts");
        let identity = started.identity.clone().expect("reported");
        assert_eq!(
            (identity.uid, identity.gid, &identity.groups[..]),
            (33, 44, &[44][..])
        );
        finish(&started, stdout, stderr);
    });
}

#[test]
fn a_user_owns_its_streams() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&["sh", "-c", "echo hello > /dev/stdout"]);
        plan.user.user = "33".into();
        assert_eq!(run(&plan).stdout, "hello\n");
    });
}

#[test]
fn privileges_are_what_the_plan_says() {
    alone(|| {
        let image = Image::new();
        let script = "busybox grep -E '^(Cap|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status; umask";
        let plan = image.plan(&["sh", "-c", script]);
        let status = run(&plan).stdout;
        // CHOWN 0, KILL 5, SETGID 6, SETUID 7. SYS_RESOURCE 24 only where the node has it.
        let own = rustix::thread::capabilities(None)
            .expect("capget")
            .permitted;
        let resource = own & rustix::thread::CapabilitySet::SYS_RESOURCE;
        let expected = format!("CapEff:\t{:016x}", 0xe1 | resource.bits());
        assert!(status.contains(&expected), "{status} lacks {expected}");
        for line in [
            "CapInh:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
            "0022",
        ] {
            assert!(status.contains(line), "{status} lacks {line}");
        }
        for line in ["SigIgn:\t0000000000000000", "SigBlk:\t0000000000000000"] {
            assert!(status.contains(line), "{status} lacks {line}");
        }
        let mut plan = image.plan(&["sh", "-c", script]);
        plan.user.user = "33".into();
        edit(&mut plan, |spec| {
            for set in ["inheritable", "ambient"] {
                spec["process"]["capabilities"][set] = json!(["CAP_CHOWN"]);
            }
            spec["process"]["noNewPrivileges"] = json!(false);
        });
        let status = run(&plan).stdout;
        assert!(status.contains("CapEff:\t0000000000000001"), "{status}");
        assert!(status.contains("NoNewPrivs:\t0"), "{status}");
    });
}

#[test]
fn limits_are_applied_and_a_score_that_cannot_be_lowered_is_not_fatal() {
    alone(|| {
        let image = Image::new();
        let script = "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj";
        let mut plan = image.plan(&["sh", "-c", script]);
        edit(&mut plan, |spec| {
            spec["process"]["rlimits"] =
                json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
            spec["process"]["oomScoreAdj"] = json!(500);
        });
        assert_eq!(run(&plan).stdout, "100\n200\n500\n");
        edit(&mut plan, |spec| {
            spec["process"]["oomScoreAdj"] = json!(-998)
        });
        let score = run(&plan)
            .stdout
            .lines()
            .nth(2)
            .map(ToOwned::to_owned)
            .expect("a score");
        let own = fs::read_to_string("/proc/self/oom_score_adj").expect("read");
        assert!(score == "-998" || score == own.trim(), "{score}");
    });
}

#[test]
fn the_working_directory_is_made_and_cannot_be_outside() {
    alone(|| {
        let image = Image::new();
        symlink("/proc/self/fd", image.layer("fds")).expect("symlink");
        let in_directory = |cwd: &str| {
            let mut plan = image.plan(&["pwd"]);
            edit(&mut plan, |spec| spec["process"]["cwd"] = json!(cwd));
            try_run(&plan)
        };
        assert_eq!(
            in_directory("/work/here").expect("made").stdout,
            "/work/here\n"
        );
        assert_eq!(in_directory("/../..").expect("the root").stdout, "/\n");
        for cwd in ["relative", "/etc/passwd"] {
            let error = in_directory(cwd).expect_err("no directory");
            assert_eq!(error.stage, "cwd", "{error}");
        }
        for fd in 3..20 {
            for cwd in [format!("/proc/self/fd/{fd}"), format!("/fds/{fd}")] {
                let error = in_directory(&cwd).expect_err("a way out");
                assert_eq!(error.stage, "cwd", "{error}");
            }
        }
    });
}

#[test]
fn cgroups_of_both_versions_are_joined_and_shown() {
    alone(|| {
        let image = Image::new();
        let name = format!("qlt-runtime-{}", std::process::id());
        let directory = |hierarchy: &str| Path::new("/sys/fs/cgroup").join(hierarchy).join(&name);
        let made: Vec<PathBuf> = ["pids", "memory", "unified"]
            .into_iter()
            .filter(|hierarchy| Path::new("/sys/fs/cgroup").join(hierarchy).is_dir())
            .map(directory)
            .collect();
        for path in &made {
            fs::create_dir(path).expect("mkdir");
        }
        let mut plan = image.plan(&[
            "sh",
            "-c",
            "cat /proc/self/cgroup; ls /sys/fs/cgroup; \
            cat /sys/fs/cgroup/pids/tasks; busybox mkdir /sys/fs/cgroup/pids/x 2>&1",
        ]);
        for path in &made {
            if path.ends_with(Path::new("unified").join(&name)) {
                plan.cgroup.unified_dir = Some(path.clone());
            } else {
                plan.cgroup.v1_tasks_files.push(path.join("tasks"));
            }
        }
        let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
        add_mount(
            &mut plan,
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                   "options": options}),
        );
        let with_namespace = try_run(&plan);
        edit(&mut plan, |spec| {
            spec["linux"]["namespaces"]
                .as_array_mut()
                .expect("a list")
                .pop();
        });
        let without = try_run(&plan);
        for path in &made {
            fs::remove_dir(path).expect("the cgroup is empty again");
        }
        let outcome = with_namespace.expect("starts");
        assert!(outcome.stdout.contains(":pids:/\n"), "{outcome:?}");
        assert!(
            outcome.stdout.contains("\nmemory\npids\nunified\n1\n"),
            "{outcome:?}"
        );
        assert!(
            outcome.stdout.contains("Read-only file system"),
            "{outcome:?}"
        );
        let outcome = without.expect("starts");
        for line in [format!(":pids:/{name}\n"), format!("0::/{name}\n")] {
            assert!(outcome.stdout.contains(&line), "{outcome:?}");
        }
    });
}

#[test]
fn a_terminal_is_the_controlling_one_and_its_master_comes_back() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&[
            "sh",
            "-c",
            "busybox tty; stat -c %t:%T /dev/console; \
            busybox stty size; read line < /dev/tty; echo got $line",
        ]);
        plan.user.user = "33".into();
        plan.stdio.terminal = true;
        edit(&mut plan, |spec| {
            spec["process"]["terminal"] = json!(true);
            spec["process"]["consoleSize"] = json!({"height": 30, "width": 100});
        });
        let error = launch(&plan, Some(streams().0)).expect_err("streams and a terminal");
        assert_eq!(error.stage, "plan");
        let started = launch(&plan, None).expect("starts");
        let output = type_input(&started);
        assert_eq!(wait(&started), 0, "{output}");
        for text in ["/dev/pts/0\r\n", "88:0\r\n", "30 100\r\n", "got input\r\n"] {
            assert!(output.contains(text), "{output:?} lacks {text:?}");
        }
    });
}

#[test]
fn a_launch_that_hangs_is_waited_for_elsewhere_and_can_be_given_up() {
    use crate::runtime::launch::{Progress, begin_launch};
    alone(|| {
        let image = Image::new();
        let fifo = image.path("tasks");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).expect("mkfifo");
        let mut plan = image.plan(&["true"]);
        plan.cgroup.v1_tasks_files.push(fifo.clone());
        // Opening a FIFO without a reader hangs, like a file system that has gone away.
        let launching = begin_launch(&plan, Some(streams().0)).expect("begins");
        let Ok(Progress::Waiting(launching)) = launching.advance() else {
            panic!("there is nothing to hear yet");
        };
        let child = launching.pid();
        drop(launching);
        // It is ended, and the caller's to reap.
        let none = rustix::process::WaitOptions::empty();
        let (pid, status) = rustix::process::waitpid(None, none)
            .expect("a child")
            .expect("dead");
        assert_eq!(Some(pid.as_raw_nonzero().get()), child);
        assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));

        let launching = begin_launch(&plan, Some(streams().0)).expect("begins");
        let reader = fs::File::open(&fifo).expect("the child is there to write");
        assert!(ready(launching.channel(), TEST_TIMEOUT));
        let started = launching.wait().expect("goes on");
        assert_eq!(wait(&started), 0);
        drop(reader);
    });
}

#[test]
fn the_stage_of_a_hanging_launch_can_be_told() {
    use crate::runtime::launch::begin_launch;
    alone(|| {
        let image = Image::new();
        let fifos = [image.path("first"), image.path("second")];
        for fifo in &fifos {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mkfifoat(rustix::fs::CWD, fifo, mode).expect("mkfifo");
        }
        let mut plan = image.plan(&["true"]);
        plan.cgroup.v1_tasks_files = fifos.to_vec();
        let launching = begin_launch(&plan, Some(streams().0)).expect("begins");
        let mut first = [0];
        fs::File::open(&fifos[0])
            .expect("open")
            .read_exact(&mut first)
            .expect("one byte");
        assert_eq!(first, *b"0");
        let error = launching.timed_out();
        assert_eq!(
            error.message,
            "the launch did not finish in 30 s; it reached: cgroup"
        );
    });
}
