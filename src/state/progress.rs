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
    /// How many parts of it are done, and of how many.
    parts: Option<(usize, usize)>,
}

impl At {
    fn fresh(stage: &'static str) -> Self {
        Self {
            stage,
            looks: 0,
            parts: None,
        }
    }
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

    /// The same in words, with how much of it is done.
    #[must_use]
    pub fn describe(&self, key: &ObjectKey) -> Option<String> {
        let stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stages.get(key).map(|at| match at.parts {
            Some((done, of)) => format!("{}, {done} of {of} layers done", at.stage),
            None => at.stage.to_owned(),
        })
    }

    /// An object's work is at this stage, which is not timed, until the next one or
    /// [`Progress::rests`].
    pub fn at(&self, key: &ObjectKey, stage: &'static str) {
        if self.stage(key) != Some(stage) {
            self.set(key, stage);
        }
    }

    fn count(&self, key: &ObjectKey, done: usize, of: usize) {
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = stages.get_mut(key) {
            at.parts = Some((done, of));
        }
    }

    /// The object waits for something that nobody can hurry (a process that does not end). Returns
    /// when to look again, in ns: `first`, doubled with each look in the same stage, at most
    /// `longest`. The stage stays known until [`Progress::rests`].
    pub fn wait(&self, key: &ObjectKey, stage: &'static str, first: i64, longest: i64) -> i64 {
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = At::fresh(stage);
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
        let fresh = At::fresh(stage);
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
    finished: bool,
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
            finished: false,
        }
    }

    /// The last stage, if any, is over; this one begins.
    pub fn enter(&mut self, stage: &'static str) {
        self.leave();
        self.progress.set(&self.key, stage);
        self.current = Some((stage, Instant::now()));
    }

    /// So many parts of the running stage are done.
    pub fn count(&mut self, done: usize, of: usize) {
        self.progress.count(&self.key, done, of);
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

    /// Name and nanoseconds of each stage, in order; the running one ends now. What is left is to
    /// write it down.
    #[must_use]
    pub fn finish(mut self) -> Vec<(&'static str, i64)> {
        self.leave();
        self.progress.set(&self.key, "record");
        self.finished = true;
        std::mem::take(&mut self.done)
    }
}

impl Drop for Stages<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.progress.clear(&self.key);
        }
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
