//! Specs that were read before: most of a row, and it never changes. What a list takes is mostly
//! making them from their JSON once more.
//!
//! ```text
//!   read ──► young ──(young is full)──► old ──(young is full again)──► forgotten
//!              ▲                         │
//!              └───────── read again ────┘
//! ```
//! Those of rows that are gone are forgotten in that way, too; no id is used twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;

/// Bytes of JSON whose specs are young, and as many may be old.
const YOUNG_BYTES: usize = 4 << 20;
/// Larger ones are made anew each time.
const LARGEST_BYTES: usize = 64 << 10;

/// Specs of one kind, by the ids of their rows.
pub(super) struct Specs<S>(Mutex<Generations<S>>);

struct Generations<S> {
    young: HashMap<String, Kept<S>>,
    old: HashMap<String, Kept<S>>,
    young_bytes: usize,
}

struct Kept<S> {
    spec: Arc<S>,
    bytes: usize,
}

impl<S> Default for Specs<S> {
    fn default() -> Self {
        Self(Mutex::new(Generations {
            young: HashMap::new(),
            old: HashMap::new(),
            young_bytes: 0,
        }))
    }
}

impl<S: DeserializeOwned> Specs<S> {
    /// The spec of a row: made of its JSON, unless it is here.
    pub(super) fn of(&self, id: &str, json: &str) -> Result<Arc<S>, serde_json::Error> {
        if json.len() > LARGEST_BYTES {
            return serde_json::from_str(json).map(Arc::new);
        }
        if let Some(spec) = self.get(id) {
            return Ok(spec);
        }
        let spec: Arc<S> = Arc::new(serde_json::from_str(json)?);
        let kept = Kept {
            spec: Arc::clone(&spec),
            bytes: json.len(),
        };
        self.lock().keep(id.to_owned(), kept);
        Ok(spec)
    }

    fn get(&self, id: &str) -> Option<Arc<S>> {
        let mut generations = self.lock();
        if let Some(kept) = generations.young.get(id) {
            return Some(Arc::clone(&kept.spec));
        }
        let (id, kept) = generations.old.remove_entry(id)?;
        let spec = Arc::clone(&kept.spec);
        generations.keep(id, kept);
        Some(spec)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Generations<S> {
    fn keep(&mut self, id: String, kept: Kept<S>) {
        if self.young_bytes + kept.bytes > YOUNG_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += kept.bytes;
        self.young.insert(id, kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_made_once() {
        let specs = Specs::<Vec<u8>>::default();
        let first = specs.of("a", "[1]").unwrap();
        assert!(Arc::ptr_eq(&first, &specs.of("a", "[1]").unwrap()));
        assert_eq!(*specs.of("b", "[2]").unwrap(), [2]);
        assert!(specs.of("c", "[").is_err());
    }

    #[test]
    fn what_nobody_reads_is_forgotten_and_what_is_read_stays() {
        let specs = Specs::<String>::default();
        let text = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
        let (first, unread) = (text(10), text(10));
        let kept = specs.of("read", &first).unwrap();
        specs.of("unread", &unread).unwrap();
        let filling = text(LARGEST_BYTES);
        for number in 0..4 * YOUNG_BYTES / LARGEST_BYTES {
            specs.of(&number.to_string(), &filling).unwrap();
            assert!(Arc::ptr_eq(&kept, &specs.of("read", &first).unwrap()));
        }
        let generations = specs.lock();
        assert!(
            !generations.young.contains_key("unread") && !generations.old.contains_key("unread")
        );
        let bytes =
            |of: &HashMap<_, Kept<String>>| of.values().map(|kept| kept.bytes).sum::<usize>();
        assert_eq!(bytes(&generations.young), generations.young_bytes);
        assert!(bytes(&generations.young) <= YOUNG_BYTES && bytes(&generations.old) <= YOUNG_BYTES);
    }

    #[test]
    fn a_large_one_is_not_kept() {
        let specs = Specs::<String>::default();
        let large = format!("\"{}\"", "x".repeat(LARGEST_BYTES));
        let first = specs.of("a", &large).unwrap();
        assert!(!Arc::ptr_eq(&first, &specs.of("a", &large).unwrap()));
    }
}
