//! The files by which a pod finds names: `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname`.
//!
//! Renders text. Only [`read_node_resolv_conf`] opens files, the node's own.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::error::NetworkError;

/// Longest resolv.conf or hosts file of the node in bytes that is copied into a pod.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Renders a resolv.conf (resolv.conf(5)) in the given order.
///
/// # Errors
///
/// [`NetworkError::Invalid`] for a server that is not an IP address, and for a search domain or
/// option that is empty or has spaces or control characters, which would become further lines.
pub fn render_resolv_conf(
    servers: &[String],
    searches: &[String],
    options: &[String],
) -> Result<String, NetworkError> {
    let mut text = String::new();
    if !searches.is_empty() {
        push_words(&mut text, "search", "dns.searches", searches)?;
    }
    for server in servers {
        // A link-local IPv6 server may name its interface: fe80::1%eth0.
        let address = server
            .split_once('%')
            .map_or(server.as_str(), |(address, _)| address);
        if address.parse::<IpAddr>().is_err() {
            return Err(invalid("dns.servers", server, "not an IP address"));
        }
        push_words(
            &mut text,
            "nameserver",
            "dns.servers",
            std::slice::from_ref(server),
        )?;
    }
    if !options.is_empty() {
        push_words(&mut text, "options", "dns.options", options)?;
    }
    Ok(text)
}

fn push_words(
    text: &mut String,
    keyword: &str,
    field: &'static str,
    words: &[String],
) -> Result<(), NetworkError> {
    text.push_str(keyword);
    for word in words {
        if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid(
                field,
                word,
                "must be printable ASCII without spaces",
            ));
        }
        text.push(' ');
        text.push_str(word);
    }
    text.push('\n');
    Ok(())
}

fn invalid(field: &'static str, value: &str, reason: &'static str) -> NetworkError {
    NetworkError::Invalid {
        field,
        value: value.to_owned(),
        reason,
    }
}

/// Which of the node's files a pod without a DNS configuration gets. `etc` is `/etc/resolv.conf`,
/// `upstream` systemd-resolved's list of real servers. When the first names nothing but
/// systemd-resolved's stub on the loopback interface, a pod could not reach it.
#[must_use]
pub fn choose_node_resolv_conf<'a>(etc: &'a str, upstream: Option<&'a str>) -> &'a str {
    let mut servers = etc.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next())
            .flatten()
    });
    let first = servers.next();
    let only_the_stub = first.is_some_and(|server| server == "127.0.0.53")
        && servers.all(|server| server == "127.0.0.53");
    if only_the_stub {
        upstream.unwrap_or(etc)
    } else {
        etc
    }
}

/// Reads what a pod without a DNS configuration gets as its resolv.conf: the node's own, by
/// [`choose_node_resolv_conf`]. `root` is the node's root directory. No file at all is an empty
/// one.
///
/// # Errors
///
/// When `/etc/resolv.conf` exists and cannot be read, is larger than 1 MiB, or is not UTF-8.
pub fn read_node_resolv_conf(root: &Path) -> Result<String, NetworkError> {
    let etc = root.join("etc/resolv.conf");
    let text = match read_bounded(&etc) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(NetworkError::file("read", etc)(error)),
    };
    let upstream = read_bounded(&root.join("run/systemd/resolve/resolv.conf")).ok();
    Ok(choose_node_resolv_conf(&text, upstream.as_deref()).to_owned())
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    Ok(text)
}

/// Renders the hosts file (hosts(5)) of a pod with its own network: the loopback names, and its
/// host name at each of its addresses. A pod in the node's network gets a copy of the node's file
/// instead.
///
/// # Errors
///
/// [`NetworkError::Invalid`] when the host name is empty or has spaces or control characters.
pub fn render_hosts(hostname: &str, addresses: &[IpAddr]) -> Result<String, NetworkError> {
    check_hostname(hostname)?;
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for address in addresses {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    Ok(text)
}

/// Renders `/etc/hostname` (hostname(5)).
///
/// # Errors
///
/// [`NetworkError::Invalid`] when the host name is empty or has spaces or control characters.
pub fn render_hostname(hostname: &str) -> Result<String, NetworkError> {
    check_hostname(hostname)?;
    Ok(format!("{hostname}\n"))
}

fn check_hostname(hostname: &str) -> Result<(), NetworkError> {
    if hostname.is_empty() || !hostname.bytes().all(|byte| byte.is_ascii_graphic()) {
        let reason = "must be printable ASCII without spaces";
        return Err(invalid("hostname", hostname, reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_resolv_conf_has_searches_servers_and_options() {
        let text = render_resolv_conf(
            &words(&["10.96.0.10", "fd00::a", "fe80::1%eth0"]),
            &words(&["ns.svc.cluster.local", "svc.cluster.local"]),
            &words(&["ndots:5", "edns0"]),
        );
        assert_eq!(
            text.unwrap(),
            "search ns.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\n\
             nameserver fd00::a\nnameserver fe80::1%eth0\noptions ndots:5 edns0\n"
        );
        assert_eq!(render_resolv_conf(&[], &[], &[]).unwrap(), "");
    }

    #[test]
    fn a_server_must_be_an_address() {
        for server in [
            "",
            "dns.example",
            "10.0.0.1 evil",
            "10.0.0.1\nsearch x",
            "fe80::1%a b",
        ] {
            assert!(
                render_resolv_conf(&words(&[server]), &[], &[]).is_err(),
                "{server:?}"
            );
        }
    }

    #[test]
    fn the_stub_resolver_is_replaced_by_what_is_behind_it() {
        let stub = "# stub\nnameserver 127.0.0.53\noptions edns0\n";
        let real = "nameserver 192.0.2.1\n";
        assert_eq!(choose_node_resolv_conf(stub, Some(real)), real);
        assert_eq!(choose_node_resolv_conf(stub, None), stub);
        assert_eq!(
            choose_node_resolv_conf(real, Some("nameserver 192.0.2.2")),
            real
        );
        let mixed = "nameserver 127.0.0.53\nnameserver 192.0.2.9\n";
        assert_eq!(choose_node_resolv_conf(mixed, Some(real)), mixed);
        assert_eq!(choose_node_resolv_conf("", Some(real)), "");
    }

    #[test]
    fn the_node_s_file_is_read_below_a_root() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read_node_resolv_conf(root.path()).unwrap(), "");
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::create_dir_all(root.path().join("run/systemd/resolve")).unwrap();
        std::fs::write(
            root.path().join("etc/resolv.conf"),
            "nameserver 127.0.0.53\n",
        )
        .unwrap();
        let upstream = root.path().join("run/systemd/resolve/resolv.conf");
        std::fs::write(upstream, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(
            read_node_resolv_conf(root.path()).unwrap(),
            "nameserver 192.0.2.1\n"
        );
    }

    #[test]
    fn a_pod_finds_itself_by_name() {
        let text = render_hosts("web-0", &["10.88.0.5".parse().unwrap()]).unwrap();
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.88.0.5\tweb-0\n"));
        assert_eq!(render_hostname("web-0").unwrap(), "web-0\n");
        assert!(render_hosts("a b", &[]).is_err());
        assert!(render_hostname("").is_err());
    }

    proptest! {
        #[test]
        fn no_word_can_add_a_line(search in ".{0,40}", option in ".{0,40}") {
            if let Ok(text) = render_resolv_conf(&[], &[search], &[option]) {
                prop_assert_eq!(text.lines().count(), 2);
            }
        }
    }
}
