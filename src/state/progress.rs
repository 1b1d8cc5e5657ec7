//! How far running work has come: the stage each object is in and the time the earlier ones took.
//!
//! In memory, because it is of use only while the work runs; what remains goes into `operations`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::id::ObjectKey;

/// Stages of everything under way.
#[derive(Default)]
pub struct Progress(Mutex<HashMap<ObjectKey, &'static str>>);

impl Progress {
    /// The stage an object's work has reached, for a caller whose patience has run out.
    #[must_use]
    pub fn stage(&self, key: &ObjectKey) -> Option<&'static str> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .copied()
    }

    fn set(&self, key: &ObjectKey, stage: &'static str) {
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match stages.get_mut(key) {
            Some(slot) => *slot = stage,
            None => drop(stages.insert(key.clone(), stage)),
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
