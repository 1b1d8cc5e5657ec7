//! Pods that may receive and send only so much. What passes is counted by the kernel's own times of
//! its arrival, so a busy machine changes nothing but how many windows are undisturbed.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};

use super::*;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// What a packet of ours has beside its content: Ethernet, IPv4, UDP.
const HEADERS: usize = 14 + 20 + 8;
const CONTENT: usize = 1400;
/// In which the rate is looked at.
const WINDOW: Duration = Duration::from_millis(400);

fn socket(host: &Host) -> UdpSocket {
    host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).expect("root may");
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("a socket");
        let patience = Some(Duration::from_secs(5));
        socket.set_read_timeout(patience).expect("a socket");
        socket
    })
}

/// When the next packet came, and how many bytes it had on its way.
fn arrival(socket: &UdpSocket) -> (Duration, usize) {
    let mut buffer = [0; 2048];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let flags = MsgFlags::empty();
    let got =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags);
    let got = got.expect("packets come");
    let mut stamps = got.cmsgs().expect("control messages");
    let at = stamps.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    });
    (at.expect("a time"), got.bytes + HEADERS)
}

/// The rates of windows one after another, in bits a second, while `sender` sends three times as
/// much as is allowed: what is waiting for its way never runs out.
fn rates(sender: &Host, receiver: &Host, to: std::net::IpAddr, allowed_bps: u64) -> Vec<f64> {
    let to_socket = socket(receiver);
    let port = to_socket.local_addr().expect("a port").port();
    let from = socket(sender);
    from.connect(SocketAddr::new(to, port)).expect("a route");
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (content, begun) = ([7; CONTENT], Instant::now());
            let mut sent = 0.0;
            while !ends.load(Ordering::Relaxed) {
                let due = begun.elapsed().as_secs_f64() * 3.0 * allowed_bps as f64 / 8.0;
                // However late we are, the queue is filled once and no more.
                for _ in 0..200 {
                    if sent >= due {
                        break;
                    }
                    let _dropped = from.send(&content);
                    sent += CONTENT as f64;
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        // What was allowed at once has passed by then.
        let (first, _) = arrival(&to_socket);
        let mut begins = loop {
            let (at, _) = arrival(&to_socket);
            if at > first + Duration::from_millis(200) {
                break at;
            }
        };
        let (mut rates, mut bytes) = (Vec::new(), 0);
        while rates.len() < 4 {
            let (at, length) = arrival(&to_socket);
            bytes += length;
            let passed = at.saturating_sub(begins);
            if passed >= WINDOW {
                rates.push(bytes as f64 * 8.0 / passed.as_secs_f64());
                (begins, bytes) = (at, 0);
            }
        }
        ends.store(true, Ordering::Relaxed);
        rates
    })
}

/// Within a tenth: never above, and reached in some window.
fn is_about(rates: &[f64], allowed_bps: u64) {
    let allowed = allowed_bps as f64;
    let most = rates.iter().copied().fold(0.0, f64::max);
    assert!(
        (0.9 * allowed..1.1 * allowed).contains(&most),
        "{allowed}: {rates:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_receives_and_sends_as_much_as_it_may() {
    let lan = Lan::new(1);
    let host = Arc::clone(&lan.hosts[0]);
    let node = start(&lan).await;
    let config = annotated(&node, "limited", &[(INGRESS, "16M"), (EGRESS, "8M")]);
    let id = node.cri.run_pod(&config).await.expect("RunPodSandbox");
    let pod = Guest::of(&node, id).await;
    let shaper = format!("i{}", &pod.id[..12]);
    assert!(host.links().contains(&shaper));
    let [a, b, c] = node.names.subnet;
    let measure = || {
        let (pod_net, pod_address) = (Arc::clone(&pod.net), pod.addresses[0]);
        let (host, host_too) = (Arc::clone(&host), Arc::clone(&host));
        let pod_too = Arc::clone(&pod.net);
        let to = thread::spawn(move || rates(&host, &pod_net, pod_address, 16_000_000));
        let gateway = [a, b, c, 1].into();
        let from = thread::spawn(move || rates(&pod_too, &host_too, gateway, 8_000_000));
        is_about(&to.join().expect("packets"), 16_000_000);
        is_about(&from.join().expect("packets"), 8_000_000);
    };
    measure();
    // Taken away by hand, it is found and put back.
    assert!(node.operate(&["check"]).status.success());
    host.remove_link(&shaper);
    let output = node.operate(&["check", "--repair"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("not limited"), "{text}");
    assert!(host.links().contains(&shaper), "{text}");
    assert!(node.operate(&["check"]).status.success());
    pod.go(&node).await;
    eventually("nothing is left of it", || async {
        (!host.links().contains(&shaper)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn limits_that_make_no_sense_are_refused_by_name() {
    let lan = Lan::new(1);
    let node = start(&lan).await;
    for (name, value) in [
        (INGRESS, "999"),
        (EGRESS, "10Mbit"),
        (EGRESS, "2P"),
        (INGRESS, ""),
    ] {
        let config = annotated(&node, "refused", &[(name, value)]);
        unfit(&node, &config, name).await;
    }
}
