//! How far running work has come: the stage each object is in and the time the earlier ones took.
//!
//! In memory, because it is of use only while the work runs; what remains goes into `operations`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::id::ObjectKey;

/// Stages of everything under way.
#[derive(Default)]
pub struct Progress(Mutex<HashMap<ObjectKey, At>>);

#[derive(Clone, Copy)]
struct At {
    stage: &'static str,
    /// How often it was looked at in this stage without finding it over.
    looks: u32,
}

impl Progress {
    /// The stage an object's work has reached, for a caller whose patience has run out.
    #[must_use]
    pub fn stage(&self, key: &ObjectKey) -> Option<&'static str> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .map(|at| at.stage)
    }

    /// The object waits for something that nobody can hurry (a process that does not end). Returns
    /// when to look again, in ns: `first`, doubled with each look in the same stage, at most
    /// `longest`. The stage stays known until [`Progress::rests`].
    pub fn wait(&self, key: &ObjectKey, stage: &'static str, first: i64, longest: i64) -> i64 {
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = At { stage, looks: 0 };
        let at = stages.entry(key.clone()).or_insert(fresh);
        if at.stage != stage {
            *at = fresh;
        }
        let pause = first.saturating_mul(1_i64 << at.looks.min(32));
        at.looks = at.looks.saturating_add(1);
        pause.min(longest)
    }

    /// Nothing is under way for this object.
    pub fn rests(&self, key: &ObjectKey) {
        self.clear(key);
    }

    fn set(&self, key: &ObjectKey, stage: &'static str) {
        let fresh = At { stage, looks: 0 };
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match stages.get_mut(key) {
            Some(slot) => *slot = fresh,
            None => drop(stages.insert(key.clone(), fresh)),
        }
    }

    fn clear(&self, key: &ObjectKey) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }
}

/// Times the stages of one piece of work.
pub struct Stages<'p> {
    progress: &'p Progress,
    key: ObjectKey,
    current: Option<(&'static str, Instant)>,
    done: Vec<(&'static str, i64)>,
}

impl<'p> Stages<'p> {
    /// Nothing has begun.
    #[must_use]
    pub fn new(progress: &'p Progress, key: ObjectKey) -> Self {
        Self {
            progress,
            key,
            current: None,
            done: Vec::new(),
        }
    }

    /// The last stage, if any, is over; this one begins.
    pub fn enter(&mut self, stage: &'static str) {
        self.leave();
        self.progress.set(&self.key, stage);
        self.current = Some((stage, Instant::now()));
    }

    fn leave(&mut self) {
        if let Some((stage, since)) = self.current.take() {
            self.done.push((
                stage,
                i64::try_from(since.elapsed().as_nanos()).unwrap_or(i64::MAX),
            ));
        }
    }

    /// A stage that was measured elsewhere.
    pub fn record(&mut self, stage: &'static str, duration_ns: i64) {
        self.done.push((stage, duration_ns.max(0)));
    }

    /// Name and nanoseconds of each stage, in order; the running one ends now.
    #[must_use]
    pub fn finish(mut self) -> Vec<(&'static str, i64)> {
        self.leave();
        std::mem::take(&mut self.done)
    }
}

impl Drop for Stages<'_> {
    fn drop(&mut self) {
        self.progress.clear(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_looked_at_ever_more_rarely_and_his_stage_is_known() {
        let progress = Progress::default();
        let key = ObjectKey::Cleanup(1);
        let pauses: Vec<i64> = (0..5)
            .map(|_| progress.wait(&key, "kill", 10, 60))
            .collect();
        assert_eq!(pauses, [10, 20, 40, 60, 60]);
        assert_eq!(progress.stage(&key), Some("kill"));
        assert_eq!(progress.wait(&key, "release", 10, 60), 10);
        progress.rests(&key);
        assert_eq!(progress.stage(&key), None);
        assert_eq!(progress.wait(&key, "release", 10, 60), 10);
    }
}
