//! Execs, and pods whose containers share namespaces.

use super::*;
use crate::runtime::launch::{PodInitPlan, pod_init};

#[test]
fn an_exec_joins_the_container_and_exits_with_its_own_code() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&["sh", "-c", "echo x > /made; exec sleep 100"]);
        edit(&mut plan, |spec| {
            spec["process"]["oomScoreAdj"] = json!(321);
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 90, "hard": 95}]);
        });
        let running = start(&plan);
        let script = "hostname; ulimit -n; cat /proc/self/oom_score_adj; \
            for n in mnt pid net ipc uts cgroup; do \
            test $(busybox readlink /proc/1/ns/$n) = $(busybox readlink /proc/self/ns/$n) \
            || echo $n; \
            done; busybox grep NoNewPrivs /proc/self/status; pwd; echo $HOME; exit 5";
        let mut inside = exec_plan(&["sh", "-c", script]);
        inside.cwd = "/tmp".into();
        let capabilities = [
            "CAP_CHOWN",
            "CAP_KILL",
            "CAP_SETUID",
            "CAP_SETGID",
            "CAP_SYS_RESOURCE",
        ];
        inside.capabilities = capabilities.map(Into::into).to_vec();
        let outcome = running.exec(&inside).expect("runs");
        let expected = "qlt-test\n90\n321\nNoNewPrivs:\t1\n/tmp\n/root\n";
        assert_eq!(
            outcome,
            Outcome {
                code: 5,
                stdout: expected.into(),
                stderr: "".into()
            }
        );

        let mut as_user = exec_plan(&["id", "-u"]);
        as_user.user.user = "web".into();
        assert_eq!(running.exec(&as_user).expect("runs").stdout, "33\n");
        let status = running
            .exec(&exec_plan(&["cat", "/proc/self/status"]))
            .expect("runs")
            .stdout;
        assert!(status.contains("CapBnd:\t0000000000000001"), "{status}");
        let error = running.exec(&exec_plan(&["/nope"])).expect_err("absent");
        assert_eq!(error.message, "exec \"/nope\": no such file or directory");
        let error = running
            .exec(&exec_plan(&["/proc/self/exe"]))
            .expect_err("a magic link");
        assert_eq!(error.stage, "exec");

        let pidfd = running.target.pidfd.try_clone().expect("dup");
        let pid = running.target.pid;
        running.stop();
        let (streams, _, _) = streams();
        let error = exec(&Target { pid, pidfd }, &inside, Some(streams), false).expect_err("gone");
        assert_eq!(error.message, "the container has ended: no such process");
    });
}

#[test]
fn an_exec_can_have_a_terminal() {
    alone(|| {
        let image = Image::new();
        let running = start(&image.plan(&["sleep", "100"]));
        let plan = exec_plan(&["sh", "-c", "busybox tty; read line; echo got $line"]);
        let started = exec(&running.target, &plan, None, true).expect("runs");
        let output = type_input(&started);
        assert_eq!(wait(&started), 0);
        assert!(
            output.contains("/dev/pts/0") && output.contains("got input"),
            "{output:?}"
        );
        running.stop();
    });
}

#[test]
fn containers_of_a_pod_share_its_pid_namespace() {
    alone(|| {
        let image = Image::new();
        let other = Image::new();
        let init = pod_init(&PodInitPlan::default()).expect("starts");
        let path = format!("/proc/{}/ns/pid", init.pid);
        let in_pod = |image: &Image, args: &[&str]| {
            let mut plan = image.plan(args);
            edit(&mut plan, |spec| {
                spec["linux"]["namespaces"][0]["path"] = json!(path)
            });
            plan
        };
        let first = start(&in_pod(&image, &["sleep", "100"]));
        let script = "busybox ps -o comm | busybox grep -c -x -e sleep -e quilt-pod; \
            cat /proc/1/comm; ls /proc/1/root/; busybox readlink /proc/1/exe; \
            (sleep 0 & exec true) ; (busybox setsid sh -c 'sleep 0 & exit' &) ; exit 3";
        let outcome = run(&in_pod(&other, &["sh", "-c", script]));
        assert_eq!(outcome.code, 3);
        assert!(outcome.stdout.starts_with("2\nquilt-pod\n"), "{outcome:?}");
        assert!(
            outcome.stderr.contains("/proc/1/root/: Permission denied"),
            "{outcome:?}"
        );
        assert_eq!(first.exec(&exec_plan(&["true"])).expect("runs").code, 0);

        // A container cannot end the pod, the runtime can; and with it go all its processes.
        let mut plan = in_pod(
            &other,
            &["sh", "-c", "busybox kill 1; busybox kill -9 1; echo $?"],
        );
        edit(&mut plan, |spec| {
            spec["process"]["capabilities"]["effective"] = json!(["CAP_KILL"]);
        });
        assert_eq!(run(&plan).stdout, "0\n");
        assert_eq!(
            first.exec(&exec_plan(&["true"])).expect("still there").code,
            0
        );
        let status = fs::read_to_string(format!("/proc/{}/status", init.pid)).expect("read");
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        let fds = fs::read_dir(format!("/proc/{}/fd", init.pid))
            .expect("list")
            .count();
        assert_eq!(fds, 1, "its signalfd");
        let term = rustix::process::Signal::TERM;
        rustix::process::pidfd_send_signal(&init.pidfd, term).expect("kill");
        // In this order: a PID namespace ends when the last of its processes has been reaped.
        assert_eq!(wait(&first.started), 128 + 9);
        assert_eq!(wait(&init), 0);
    });
}

#[test]
fn a_pod_init_reaps_orphans() {
    alone(|| {
        let image = Image::new();
        let init = pod_init(&PodInitPlan::default()).expect("starts");
        let mut plan = image.plan(&[
            "sh",
            "-c",
            "busybox setsid sh -c 'busybox usleep 20000 & exit' & wait; \
             while busybox ps -o ppid,comm | busybox grep -q -E '^ *1 usleep'; do :; done; \
             busybox ps -o stat,comm | busybox grep -c '^Z'",
        ]);
        edit(&mut plan, |spec| {
            let path = json!(format!("/proc/{}/ns/pid", init.pid));
            spec["linux"]["namespaces"][0]["path"] = path;
        });
        assert_eq!(run(&plan).stdout, "0\n");
        let kill = rustix::process::Signal::KILL;
        rustix::process::pidfd_send_signal(&init.pidfd, kill).expect("kill");
        assert_eq!(wait(&init), 128 + 9);
    });
}

#[test]
fn namespaces_given_by_path_are_joined() {
    alone(|| {
        let image = Image::new();
        let first = start(&image.plan(&["sleep", "100"]));
        let second_image = Image::new();
        let script = "for n in net ipc uts; do busybox readlink /proc/self/ns/$n; done; hostname";
        let mut plan = second_image.plan(&["sh", "-c", script]);
        let path = |kind: &str| format!("/proc/{}/ns/{kind}", first.started.pid);
        edit(&mut plan, |spec| {
            for (index, kind) in [(2, "ipc"), (3, "uts"), (4, "net")] {
                spec["linux"]["namespaces"][index]["path"] = json!(path(kind));
            }
        });
        let expected: Vec<String> = ["net", "ipc", "uts"]
            .iter()
            .map(|kind| {
                fs::read_link(path(kind))
                    .expect("readlink")
                    .display()
                    .to_string()
            })
            .collect();
        assert_eq!(
            run(&plan).stdout,
            format!("{}\nqlt-test\n", expected.join("\n"))
        );
        first.stop();
    });
}

/// As when the process that the path names has ended, and its number is one of the node's.
#[test]
fn the_nodes_pid_namespace_is_never_joined_by_path() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&["true"]);
        edit(&mut plan, |spec| {
            let path = json!(format!("/proc/{}/ns/pid", std::process::id()));
            spec["linux"]["namespaces"][0]["path"] = path;
        });
        let error = refusal(&plan).to_string();
        assert!(error.contains("node's own PID namespace"), "{error}");
    });
}

#[test]
fn a_container_can_share_the_nodes_pid_namespace() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&["sh", "-c", "echo $$; busybox readlink /proc/self/ns/pid"]);
        edit(&mut plan, |spec| {
            spec["linux"]["namespaces"]
                .as_array_mut()
                .expect("a list")
                .remove(0);
        });
        let (streams, stdout, stderr) = streams();
        let started = launch(&plan, Some(streams)).expect("starts");
        let own = fs::read_link("/proc/self/ns/pid").expect("readlink");
        let outcome = finish(&started, stdout, stderr);
        assert_eq!(
            outcome.stdout,
            format!("{}\n{}\n", started.pid, own.display())
        );
    });
}
