//! Logs that cannot be written, and logs that outlive their writer.

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;
use crate::shim::protocol::{
    FromShim, LogLoss, MESSAGE_MAX_BYTES, Request, ToShim, VERSION, decode, encode,
};
use crate::sys::seqpacket;

/// A file system with as good as no room, where the log of a container is to be.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: &Path) -> SmallDisk {
        fs::create_dir_all(path).unwrap();
        let tmpfs = Some("tmpfs");
        mount(tmpfs, path, tmpfs, MsFlags::empty(), Some("size=4096")).unwrap();
        SmallDisk(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _gone = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

async fn next_loss(shim: &ShimClient, events: &mut Receiver<ShimEvent>) -> LogLoss {
    loop {
        match timeout(BOUND, events.recv()).await.unwrap().unwrap() {
            ShimEvent::LogLoss => {}
            other => panic!("{other:?} before a loss"),
        }
        if let [loss] = &shim.take_log_losses()[..] {
            return loss.clone();
        }
    }
}

#[tokio::test]
async fn what_a_full_disk_costs_is_told_to_every_daemon_and_handed_to_the_next_shim() {
    let node = Node::new();
    let _disk = SmallDisk::at(node.log("full").parent().unwrap());
    let (shim, mut events) = node.connect().await;
    // 4000 bytes in 100 lines are more than fit, with what stands before each.
    let script = "for n in $(/bin/busybox seq 100); do printf '%040d\\n' $n; done; \
                  read gate; printf '%080d\\n' 0";
    let args = ["/bin/busybox", "sh", "-c", script];
    let plan = node.plan_with("full", &args, |plan| plan.stdio.stdin = true);
    let launched = shim.launch("full", &plan).await.unwrap();
    let mut loss = next_loss(&shim, &mut events).await;
    // What is written in one piece is lost in one piece; what comes later is told later.
    while loss.lines < 50 {
        loss = next_loss(&shim, &mut events).await;
    }
    assert_eq!((loss.lines, loss.bytes), (50, 50 * 81));
    assert!(loss.why.contains("No space left"), "{loss:?}");
    assert_eq!(node.content("full").lines().count(), 50);
    drop((shim, events));
    let (shim, mut events) = node.connect().await;
    assert_eq!(next_loss(&shim, &mut events).await, loss);

    kill_process(pid(shim.shim_pid()), Signal::KILL).unwrap();
    drop((shim, events));
    let (shim, mut events) = node.connect().await;
    let orphan = Orphan {
        lost_log: (loss.lines, loss.bytes),
        ..orphan("full", &plan, &launched)
    };
    assert!(shim.adopt(orphan).await.unwrap());
    let stdin = plan.with_file_name("stdin");
    fs::write(stdin, "go\n").unwrap();
    // One more line does not fit either; it is told before the exit.
    loop {
        let next = next_loss(&shim, &mut events).await;
        if next.lines == loss.lines + 1 {
            break;
        }
        assert_eq!(next.lines, loss.lines, "{next:?}");
    }
    let exit = next_exit(&mut events).await;
    shim.acknowledge(exit.sequence).await.unwrap();
}

/// Speaks to a shim as a daemon that reads nothing until it is told to.
struct Deaf(OwnedFd);

impl Deaf {
    /// Greets the shim, and asks it until neither side takes more: from here on answers wait in the
    /// shim, and everything else behind them.
    async fn clog(socket: &Path) -> Deaf {
        let daemon = Deaf(seqpacket::connect(socket).unwrap());
        let hello = ToShim::Hello { version: VERSION };
        seqpacket::send(daemon.0.as_fd(), &encode(&hello).unwrap(), &[]).unwrap();
        assert!(matches!(daemon.next().await, FromShim::Welcome { .. }));
        let mut number = 0;
        let (mut refused, patience) = (0, 500);
        // The shim has stopped reading when there is no room for long.
        while refused < patience {
            let request = Request::Ping;
            let ping = encode(&ToShim::Request { number, request }).unwrap();
            match seqpacket::send(daemon.0.as_fd(), &ping, &[]) {
                Ok(()) => (number, refused) = (number + 1, 0),
                Err(_) => {
                    refused += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        daemon
    }

    async fn next(&self) -> FromShim {
        let mut buffer = vec![0; MESSAGE_MAX_BYTES];
        let mut received = None;
        until("the shim says something", || {
            received = seqpacket::receive(self.0.as_fd(), &mut buffer).ok();
            received.is_some()
        })
        .await;
        let length = received.map_or(0, |received| received.len);
        decode(&buffer[..length]).unwrap()
    }
}

/// The daemon records what a log lacks with the exit, so it must have heard of it before.
#[tokio::test]
async fn an_exit_is_told_after_its_loss_also_when_the_daemon_has_read_nothing_for_long() {
    let node = Node::new();
    let _disk = SmallDisk::at(node.log("full").parent().unwrap());
    let (shim, events) = node.connect().await;
    let script = "read gate; for n in $(/bin/busybox seq 100); do printf '%040d\\n' $n; done";
    let args = ["/bin/busybox", "sh", "-c", script];
    let plan = node.plan_with("full", &args, |plan| plan.stdio.stdin = true);
    let launched = shim.launch("full", &plan).await.unwrap();
    drop((shim, events));
    let daemon = Deaf::clog(&node.state().join(SOCKET_NAME)).await;
    fs::write(plan.with_file_name("stdin"), "go\n").unwrap();
    until("the container has ended", || !is_alive(launched.pid)).await;
    let mut told = Vec::new();
    loop {
        match daemon.next().await {
            FromShim::LogLoss(loss) => told.push(loss.lines),
            FromShim::Exited(record) => break assert_eq!(record.id.as_str(), "full"),
            _ => {}
        }
    }
    assert_eq!(told.last(), Some(&50), "{told:?}");
}

#[tokio::test]
async fn times_do_not_go_back_behind_those_of_a_shim_with_a_faster_clock() {
    let node = Node::new();
    let (shim, events) = node.connect().await;
    let script = "echo one; read gate; echo two";
    let args = ["/bin/busybox", "sh", "-c", script];
    let plan = node.plan_with("c", &args, |plan| plan.stdio.stdin = true);
    let launched = shim.launch("c", &plan).await.unwrap();
    until("the first line is logged", || node.content("c") == "one\n").await;
    kill_process(pid(shim.shim_pid()), Signal::KILL).unwrap();
    drop((shim, events));
    let log = node.log("c");
    let ahead = "2200-01-01T00:00:00.000000000Z stdout F ahead\n2200-01-01T00:00:00.0000";
    let text = fs::read_to_string(&log).unwrap() + ahead;
    fs::write(&log, text).unwrap();
    let (shim, mut events) = node.connect().await;
    assert!(shim.adopt(orphan("c", &plan, &launched)).await.unwrap());
    fs::write(plan.with_file_name("stdin"), "go\n").unwrap();
    let exit = next_exit(&mut events).await;
    let text = fs::read_to_string(&log).unwrap();
    let last = text.lines().next_back().unwrap();
    assert_eq!(last, "2200-01-01T00:00:00.000000000Z stdout F two");
    assert_eq!(node.content("c"), "one\nahead\ntwo\n");
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_log_is_rotated_at_its_size_without_a_gap() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let args = ["/bin/busybox", "seq", "1", "20000"];
    let plan = node.plan_with("c", &args, |plan| {
        plan.stdio.log_limits.file_bytes = 70_000;
        plan.stdio.log_limits.files = 1000;
    });
    shim.launch("c", &plan).await.unwrap();
    let exit = next_exit(&mut events).await;
    let log = node.log("c");
    let mut files: Vec<PathBuf> = fs::read_dir(log.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    // The rotated ones have longer names: the newest comes first.
    files.sort();
    files.rotate_left(1);
    assert!(files.len() > 10, "{}", files.len());
    for file in &files {
        assert!(fs::metadata(file).unwrap().len() <= 70_000);
    }
    let all: String = files.iter().map(|file| content(file)).collect();
    let expected: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert!(all == expected, "{} of {} bytes", all.len(), expected.len());
    shim.acknowledge(exit.sequence).await.unwrap();
}

#[tokio::test]
async fn a_container_that_writes_too_fast_waits_and_loses_nothing() {
    let node = Node::new();
    let (shim, mut events) = node.connect().await;
    let args = ["/bin/busybox", "seq", "100000", "159999"];
    let plan = node.plan_with("c", &args, |plan| {
        plan.stdio.log_limits.bytes_per_s = 50_000;
    });
    shim.launch("c", &plan).await.unwrap();
    // 420 000 bytes, of which 50 000 go at once and 256 KiB wait in the pipe: the rest takes time,
    // in which the shim answers.
    until("something is logged", || !node.content("c").is_empty()).await;
    assert!(events.try_recv().is_err(), "it has ended already");
    shim.ping().await.unwrap();
    let exit = next_exit(&mut events).await;
    assert_eq!(exit.code, 0);
    let expected: String = (100_000..160_000).map(|n| format!("{n}\n")).collect();
    assert!(node.content("c") == expected);
    shim.acknowledge(exit.sequence).await.unwrap();
}
