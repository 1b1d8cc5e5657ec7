//! Why a container's first process ended, from what kernel and daemon know of it.
//!
//! `OOMKilled` means: the kernel has killed something of the container for want of memory, and the
//! container has not come through. What ended for another reason later, because it was told to
//! stop, is not called so, however many of its children had been killed before.

use super::signal;

/// Where memory ran out when the kernel killed something of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exhausted {
    /// At the container's own limit, bytes.
    OwnLimit(u64),
    /// At the limit (bytes) of a cgroup above it: the pod's, or one of the node's making.
    LimitAbove {
        /// Its path.
        path: String,
        /// Its limit, bytes.
        bytes: u64,
    },
    /// On the node as a whole.
    Node,
}

/// What is known when a container's first process has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Exit code; 128 + signal.
    pub code: i32,
    /// The signal that killed it, if one did and that was seen.
    pub signal: Option<i32>,
    /// Processes of its cgroup that the kernel has killed for want of memory.
    pub oom_kills: u64,
    /// How many of those before it was told to end.
    pub oom_kills_before_stop: u64,
    /// Where memory ran out, if it did.
    pub exhausted: Option<Exhausted>,
    /// Whether systemd-oomd has killed its cgroup.
    pub oomd: bool,
    /// Whether it, or its pod, was told to end.
    pub stopped: bool,
}

/// One word for why a container ended, as kubelet knows them, and the particulars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// `Completed`, `Error` or `OOMKilled`.
    pub reason: &'static str,
    /// In words, where there is more to say than code and reason do.
    pub particulars: Option<String>,
}

/// Why it ended.
#[must_use]
pub fn judge(seen: &Seen) -> Ending {
    let say = |reason, particulars| Ending {
        reason,
        particulars,
    };
    if seen.code == 0 {
        return say("Completed", None);
    }
    let ooms = seen.oom_kills.saturating_sub(seen.oom_kills_before_stop);
    if ooms > 0 {
        let what = match ooms {
            1 => "a process of it".to_owned(),
            many => format!("{many} processes of it"),
        };
        let place = place(seen.exhausted.as_ref());
        let text = format!("the kernel killed {what} for want of memory: {place}");
        return say("OOMKilled", Some(text));
    }
    if seen.oomd {
        let text = "systemd-oomd killed it: the node, or a slice of it, was short of memory";
        return say("Error", Some(text.into()));
    }
    let foreign = seen.signal.filter(|_| !seen.stopped);
    say("Error", foreign.map(by_signal))
}

fn place(exhausted: Option<&Exhausted>) -> String {
    match exhausted {
        Some(Exhausted::OwnLimit(bytes)) => format!("its limit is {bytes} bytes"),
        Some(Exhausted::LimitAbove { path, bytes }) => {
            format!("{path}, above it, is limited to {bytes} bytes")
        }
        Some(Exhausted::Node) => "the node had none left".into(),
        None => "where it ran out is not known".into(),
    }
}

/// Nobody told it to end. Some signals are a process' own doing; who sent another one the kernel
/// does not tell. It may have been the kernel itself, with the init of a shared PID namespace.
fn by_signal(number: i32) -> String {
    const OWN: [&str; 8] = [
        "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGPIPE", "SIGSYS",
    ];
    let name = signal::name(number);
    if OWN.contains(&name.as_str()) {
        return format!("it ended with {name}");
    }
    format!("it was killed by {name}; no client asked for that, and there was memory left")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(seen: Seen) -> (&'static str, String) {
        let ending = judge(&seen);
        (ending.reason, ending.particulars.unwrap_or_default())
    }

    #[test]
    fn where_memory_ran_out_is_told() {
        let killed = Seen {
            code: 137,
            signal: Some(9),
            oom_kills: 1,
            ..Seen::default()
        };
        for (exhausted, words) in [
            (Some(Exhausted::OwnLimit(4096)), "its limit is 4096 bytes"),
            (
                Some(Exhausted::LimitAbove {
                    path: "/kubepods/pod1".into(),
                    bytes: 8192,
                }),
                "/kubepods/pod1, above it, is limited to 8192 bytes",
            ),
            (Some(Exhausted::Node), "the node had none left"),
            (None, "is not known"),
        ] {
            let (reason, text) = told(Seen {
                exhausted,
                ..killed.clone()
            });
            assert_eq!(reason, "OOMKilled");
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn what_was_stopped_later_is_not_called_oom() {
        let stopped = Seen {
            code: 143,
            signal: Some(15),
            oom_kills: 3,
            oom_kills_before_stop: 3,
            stopped: true,
            ..Seen::default()
        };
        assert_eq!(told(stopped.clone()), ("Error", String::new()));
        // What is killed while it stops is.
        let while_stopping = Seen {
            oom_kills: 4,
            ..stopped
        };
        assert_eq!(told(while_stopping).0, "OOMKilled");
    }

    #[test]
    fn signals_of_others_are_told_from_its_own() {
        let by = |signal| {
            told(Seen {
                code: 128 + signal,
                signal: Some(signal),
                ..Seen::default()
            })
        };
        assert!(by(9).1.contains("SIGKILL; no client"), "{:?}", by(9));
        assert_eq!(by(11), ("Error", "it ended with SIGSEGV".into()));
        let oomd = Seen {
            code: 137,
            signal: Some(9),
            oomd: true,
            ..Seen::default()
        };
        assert!(told(oomd).1.contains("systemd-oomd"));
    }

    proptest! {
        #[test]
        fn oom_is_said_exactly_when_it_has_killed_since_the_stop(
            code in 0..256_i32, kills in 0..5_u64, before in 0..5_u64, stopped: bool,
        ) {
            let seen = Seen {
                code,
                oom_kills: kills,
                oom_kills_before_stop: before,
                stopped,
                ..Seen::default()
            };
            let ending = judge(&seen);
            prop_assert_eq!(ending.reason == "OOMKilled", code != 0 && kills > before);
            prop_assert_eq!(ending.reason == "Completed", code == 0);
        }
    }
}
