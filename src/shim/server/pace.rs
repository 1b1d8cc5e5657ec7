//! When a stream is read next: as soon as epoll tells, or by the clock. Pure.
//!
//! A process that writes line by line would wake the shim for every line, and even without that
//! each of its writes would pay for being told of: the kernel runs through all who poll a pipe,
//! whether there was something in it before or not. So a stream that is read again and again is
//! taken out of epoll and read when it should be less than half full. A line that comes after a
//! silence is read at once, and none waits longer than [`REST`].

use std::time::{Duration, Instant};

/// How long a stream rests at most, and how closely its reads must follow each other for it.
pub(super) const REST: Duration = Duration::from_micros(500);
/// How long it rests at least: what comes sooner is not worth a look.
const SHORTEST_REST: Duration = Duration::from_micros(50);

/// When one stream is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// When there is something; epoll tells.
    WhenTold,
    /// Then, without being told.
    At(Instant),
}

/// How one stream has been read so far.
#[derive(Debug)]
pub(super) struct Pace {
    last: Option<Instant>,
    rests: bool,
    /// What it may hold when it is read.
    enough: usize,
}

impl Pace {
    /// Of a stream that can hold so many bytes.
    pub(super) fn new(capacity: usize) -> Pace {
        Pace {
            last: None,
            rests: false,
            enough: (capacity / 8 * 3).max(1),
        }
    }

    /// `moved` bytes have been read just now; with `drained`, all there was.
    pub(super) fn after(&mut self, now: Instant, moved: usize, drained: bool) -> Next {
        let passed = self.last.replace(now);
        let passed = passed.map_or(Duration::MAX, |last| now.saturating_duration_since(last));
        let next = match drained {
            false => Next::At(now),
            true if moved > 0 && (self.rests || passed <= REST) => {
                Next::At(now + self.filled_in(passed, moved))
            }
            true => Next::WhenTold,
        };
        self.rests = next != Next::WhenTold;
        next
    }

    /// It is read when epoll tells, for another reason.
    pub(super) fn is_told_again(&mut self) {
        self.rests = false;
    }

    /// Whether it is read by the clock.
    pub(super) fn rests(&self) -> bool {
        self.rests
    }

    /// When there will be enough if bytes go on coming like this.
    fn filled_in(&self, passed: Duration, moved: usize) -> Duration {
        let enough = u128::try_from(self.enough).unwrap_or(u128::MAX);
        let moved = u128::try_from(moved).unwrap_or(u128::MAX).max(1);
        let ns = passed.as_nanos().saturating_mul(enough) / moved;
        let rest = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
        rest.clamp(SHORTEST_REST, REST)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: usize = 256 * 1024;
    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn lines_that_come_now_and_then_are_read_when_they_come() {
        let mut pace = Pace::new(CAPACITY);
        let mut now = Instant::now();
        for _ in 0..3 {
            assert_eq!(pace.after(now, 100, true), Next::WhenTold);
            now += us(501);
        }
    }

    #[test]
    fn lines_that_follow_closely_are_read_together_until_they_stop() {
        let mut pace = Pace::new(CAPACITY);
        let start = Instant::now();
        assert_eq!(pace.after(start, 100, true), Next::WhenTold);
        let then = start + us(10);
        assert_eq!(pace.after(then, 100, true), Next::At(then + REST));
        // Late, for others had their turn.
        let then = start + us(3000);
        assert_eq!(pace.after(then, 5000, true), Next::At(then + REST));
        let then = start + us(3500);
        assert_eq!(pace.after(then, 0, true), Next::WhenTold);
        assert!(!pace.rests());
    }

    #[test]
    fn a_fast_stream_is_read_before_it_is_full() {
        let mut pace = Pace::new(CAPACITY);
        let mut now = Instant::now();
        pace.after(now, 1, true);
        // 700 bytes a microsecond.
        now += us(100);
        let Next::At(at) = pace.after(now, 70_000, true) else {
            panic!("it is read again soon");
        };
        let rest = usize::try_from((at - now).as_micros()).unwrap();
        assert!((CAPACITY / 4..CAPACITY / 2).contains(&(rest * 700)));
        // What has more is read on at once.
        assert_eq!(pace.after(now, CAPACITY / 2, false), Next::At(now));
    }

    proptest! {
        #[test]
        fn nothing_waits_longer_than_a_rest(
            reads in prop::collection::vec(
                (0_u64..1_000_000, 0_usize..1 << 20, any::<bool>()),
                1..50,
            ),
            capacity in 0_usize..1 << 21,
        ) {
            let mut pace = Pace::new(capacity);
            let mut now = Instant::now();
            for (passed, moved, drained) in reads {
                now += us(passed);
                match pace.after(now, moved, drained) {
                    Next::At(at) => prop_assert!(at >= now && at <= now + REST),
                    Next::WhenTold => prop_assert!(drained),
                }
            }
        }
    }
}
