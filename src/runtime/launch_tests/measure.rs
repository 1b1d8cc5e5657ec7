//! How long a launch takes. `cargo test --release --lib measure -- --ignored --nocapture`.

use std::time::Instant;

use super::*;

const ROUNDS: usize = 200;

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    eprintln!(
        "{what}: p50 {:?}, p90 {:?}, p99 {:?}",
        at(50),
        at(90),
        at(99)
    );
}

#[test]
#[ignore = "a measurement"]
fn launch_and_exec_times() {
    alone(|| {
        let image = Image::new();
        let mut plan = image.plan(&["true"]);
        for name in ["hosts", "resolv.conf", "hostname"] {
            fs::write(image.path(name), "x\n").expect("write");
            let target = format!("/etc/{name}");
            add_mount(&mut plan, bind(&image.path(name), &target, &["bind"]));
        }
        let mut started = Vec::new();
        let mut exited = Vec::new();
        for round in 0..ROUNDS {
            // Layers of its own, as every container has.
            plan.rootfs.upper = image.path(&format!("{round}/upper"));
            plan.rootfs.work = image.path(&format!("{round}/work"));
            fs::create_dir_all(&plan.rootfs.upper).expect("mkdir");
            fs::create_dir_all(&plan.rootfs.work).expect("mkdir");
            let (streams, _stdout, _stderr) = streams();
            let begin = Instant::now();
            let process = launch(&plan, Some(streams)).expect("starts");
            started.push(begin.elapsed());
            assert_eq!(wait(&process), 0);
            exited.push(begin.elapsed());
        }
        report("launch of `true`, until exec", started);
        report("launch of `true`, until exit", exited);

        let running = start(&image.plan(&["sleep", "100"]));
        let plan = exec_plan(&["true"]);
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let (streams, _stdout, _stderr) = streams();
            let begin = Instant::now();
            let process = exec(&running.target, &plan, Some(streams), false).expect("starts");
            assert_eq!(wait(&process), 0);
            times.push(begin.elapsed());
        }
        report("exec of `true`, until exit", times);
        running.stop();
    });
}
