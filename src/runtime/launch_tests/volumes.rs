//! What kubelet hands in beside directories of files: huge pages, sockets, FIFOs, devices.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};

use super::files::with_mounts;
use super::*;

#[test]
fn huge_pages_a_socket_a_fifo_and_a_device_are_mounted_as_what_they_are() {
    alone(|| {
        // Removed by the process that does not see what is mounted in it.
        let image = Image::new();
        let socket = image.path("socket");
        let listener = UnixListener::bind(&socket).expect("a socket of the test");
        with_mounts(|| {
            use rustix::mount::{MountFlags, mount};
            let pages = image.path("pages");
            fs::create_dir(&pages).expect("mkdir");
            let options = Some(c"pagesize=2M,size=4M");
            mount(
                "hugetlbfs",
                &pages,
                "hugetlbfs",
                MountFlags::empty(),
                options,
            )
            .expect("mount");
            let fifo = image.path("fifo");
            nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
            let script = "[ -S /run/socket ] && [ -c /run/null ] && echo x > /run/null && \
                          echo through > /run/fifo; exec sleep 1000";
            let mut plan = image.plan(&["sh", "-c", script]);
            add_mount(&mut plan, bind(&pages, "/pages", &["rbind", "rw"]));
            for (source, target) in [
                (socket.as_path(), "/run/socket"),
                (&fifo, "/run/fifo"),
                (Path::new("/dev/null"), "/run/null"),
            ] {
                add_mount(&mut plan, bind(source, target, &["rbind", "rw"]));
            }
            let running = start(&plan);
            assert_eq!(
                fs::read(&fifo).expect("its other side writes"),
                b"through\n"
            );
            let inside = format!("/proc/{}/root/run/socket", running.started.pid);
            let mut client = UnixStream::connect(inside).expect("the same socket");
            client.write_all(b"hello").expect("written");
            let (mut server, _) = listener.accept().expect("somebody has come");
            let mut word = [0_u8; 5];
            server.read_exact(&mut word).expect("read");
            assert_eq!(&word, b"hello");
            let pid = running.started.pid;
            let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("it runs");
            let pages = text.lines().find(|line| line.contains(" /pages "));
            let pages = pages.expect("it is mounted");
            assert!(pages.contains(" - hugetlbfs "), "{pages}");
            assert!(pages.contains("pagesize=2M"), "{pages}");
            running.stop();
        });
    });
}
