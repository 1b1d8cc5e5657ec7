//! Sockets to netfilter that stay open between one change of the rules and the next.
//!
//! Closing one is not free: the kernel then waits until all that was deleted before is destroyed
//! (`nft_rcv_nl_event` of `net/netfilter/nf_tables_api.c`), which takes an RCU grace period of ten
//! milliseconds or more, and nobody can change any rule meanwhile.

use std::sync::{Mutex, PoisonError};

use super::failed;
use crate::network::NetworkError;
use crate::network::netlink::{NetlinkError, Socket};

/// Sockets that are kept: as many as pods that come and go side by side (`lifecycle/job.rs`).
const KEPT_MAX: usize = 32;

/// The way to the packet rules of one network namespace: that of the threads that use it, which is
/// to be the same for all of them.
#[derive(Default)]
pub struct Netfilter {
    kept: Mutex<Vec<Socket>>,
}

impl Netfilter {
    /// Does `work` with a socket that nobody else uses meanwhile.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        let kept = self.kept().pop();
        let mut socket = match kept {
            Some(socket) => socket,
            None => Socket::open_netfilter().map_err(failed("open a socket for"))?,
        };
        let done = work(&mut socket);
        if done.as_ref().err().is_none_or(leaves_it_usable) {
            let mut kept = self.kept();
            if kept.len() < KEPT_MAX {
                kept.push(socket);
            }
        }
        done
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Socket>> {
        // A list of sockets is whole at any moment.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a socket works on after this: the kernel has answered. Of another one nobody knows what
/// is still to come.
fn leaves_it_usable(error: &NetworkError) -> bool {
    match error {
        NetworkError::Netlink { source, .. } => matches!(source, NetlinkError::Refused { .. }),
        NetworkError::NotOurs { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refused() -> NetworkError {
        let source = io::Error::from_raw_os_error(libc::ENOENT);
        failed("try")(NetlinkError::Refused {
            message: None,
            source,
        })
    }

    fn timed_out() -> NetworkError {
        failed("try")(NetlinkError::Socket(io::ErrorKind::WouldBlock.into()))
    }

    #[test]
    fn a_socket_is_used_again_unless_something_may_still_come_on_it() {
        let netfilter = Netfilter::default();
        let kept = || netfilter.kept().len();
        netfilter.with(|_| Ok(())).unwrap();
        assert_eq!(kept(), 1);
        netfilter.with(|_| Err::<(), _>(refused())).unwrap_err();
        assert_eq!(kept(), 1);
        netfilter
            .with(|_| {
                assert_eq!(kept(), 0, "it is nobody else's meanwhile");
                netfilter.with(|_| Ok(()))
            })
            .unwrap();
        assert_eq!(kept(), 2);
        netfilter.with(|_| Err::<(), _>(timed_out())).unwrap_err();
        assert_eq!(kept(), 1);
    }
}
