//! How fast a container may write its log: so many bytes a second over time, and one second's worth
//! at once. What is over that is not read yet: the container waits at its full pipe, and loses
//! nothing. Pure.

use std::time::{Duration, Instant};

/// What is not worth waking up for.
const STEP_BYTES: u64 = 4 * 1024;

/// Counts what one container has written.
#[derive(Debug)]
pub struct Rate {
    per_second: u64,
    /// What may be read now.
    left: u64,
    /// When that was so.
    at: Instant,
}

impl Rate {
    /// So many bytes a second; 0 counts as 1.
    #[must_use]
    pub fn new(per_second: u64, now: Instant) -> Rate {
        let per_second = per_second.max(1);
        Rate {
            per_second,
            left: per_second,
            at: now,
        }
    }

    /// How many bytes may be read now, at least one.
    ///
    /// # Errors
    /// When it is worth asking again, if that is not now.
    pub fn room(&mut self, now: Instant) -> Result<u64, Instant> {
        let passed = now.saturating_duration_since(self.at);
        let gained = passed.as_nanos() * u128::from(self.per_second) / 1_000_000_000;
        if gained > 0 {
            let gained = u64::try_from(gained).unwrap_or(u64::MAX);
            self.left = self.left.saturating_add(gained).min(self.per_second);
            self.at = now;
        }
        let step = STEP_BYTES.min(self.per_second);
        if self.left >= step {
            return Ok(self.left);
        }
        let missing = u128::from(step - self.left) * 1_000_000_000;
        let wait = missing.div_ceil(u128::from(self.per_second));
        Err(self.at + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// So many bytes have been read.
    pub fn take(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.left = self.left.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_second_s_worth_goes_at_once_and_then_time_gives_more() {
        let start = Instant::now();
        let mut rate = Rate::new(10_000, start);
        assert_eq!(rate.room(start), Ok(10_000));
        rate.take(10_000);
        let again = rate.room(start).unwrap_err();
        assert_eq!(again, start + Duration::from_nanos(409_600_000));
        assert_eq!(rate.room(again), Ok(4096));
        // Idle hours are not saved up.
        assert_eq!(rate.room(again + Duration::from_secs(7200)), Ok(10_000));
    }

    #[test]
    fn the_slowest_is_a_byte_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(0, start);
        rate.take(1);
        assert_eq!(rate.room(start), Err(start + Duration::from_secs(1)));
        assert_eq!(rate.room(start + Duration::from_secs(1)), Ok(1));
    }

    proptest! {
        #[test]
        fn over_time_no_more_than_was_allowed(
            per_second in 1_u64..1_000_000,
            pauses in prop::collection::vec(0_u64..2_000_000_000, 1..60),
        ) {
            let start = Instant::now();
            let (mut rate, mut now, mut read) = (Rate::new(per_second, start), start, 0);
            for pause in pauses {
                now += Duration::from_nanos(pause);
                match rate.room(now) {
                    Ok(bytes) => {
                        rate.take(usize::try_from(bytes).unwrap());
                        read += bytes;
                    }
                    Err(again) => prop_assert!(again > now),
                }
            }
            let passed = now.duration_since(start).as_nanos();
            let allowed = u128::from(per_second) * (passed + 1_000_000_000) / 1_000_000_000;
            prop_assert!(u128::from(read) <= allowed, "{read} of {allowed}");
        }
    }
}
