//! Sessions that were asked for and have not begun: each behind a token that is good once, for a
//! minute, and cannot be guessed. Pure but for the random bytes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::id::random_name;

/// How long a token is good.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);
/// Tokens that may wait at once.
pub(super) const WAITING_MAX: usize = 1000;
/// Random bytes in a token; 128 bits cannot be guessed within a minute.
const TOKEN_BYTES: usize = 16;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// As many as may wait do.
    #[error(
        "{WAITING_MAX} sessions were asked for and have not begun; ask again in {} s",
        LIFETIME.as_secs()
    )]
    TooMany,
}

/// What waits to be fetched by its token.
#[derive(Debug)]
pub(super) struct Tokens<T> {
    waiting: Mutex<HashMap<String, (Instant, T)>>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self {
            waiting: Mutex::new(HashMap::new()),
        }
    }
}

impl<T> Tokens<T> {
    /// Keeps `ask` until it is fetched or a minute is over.
    ///
    /// # Errors
    /// [`TokenError`].
    pub(super) fn give(&self, ask: T, now: Instant) -> Result<String, TokenError> {
        let token = random_token();
        let mut waiting = self.waiting();
        if waiting.len() >= WAITING_MAX {
            waiting.retain(|_, (given, _)| is_good(*given, now));
        }
        if waiting.len() >= WAITING_MAX {
            return Err(TokenError::TooMany);
        }
        waiting.insert(token.clone(), (now, ask));
        Ok(token)
    }

    /// What this token stands for, once.
    pub(super) fn take(&self, token: &str, now: Instant) -> Option<T> {
        let (given, ask) = self.waiting().remove(token)?;
        is_good(given, now).then_some(ask)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, (Instant, T)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_good(given: Instant, now: Instant) -> bool {
    now.saturating_duration_since(given) < LIFETIME
}

fn random_token() -> String {
    let mut token = random_name();
    token.truncate(2 * TOKEN_BYTES);
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.give(7, now).unwrap();
        assert_eq!(token.len(), 2 * TOKEN_BYTES);
        assert_ne!(token, tokens.give(8, now).unwrap());
        assert_eq!(tokens.take("", now), None);
        assert_eq!(tokens.take(&token, now), Some(7));
        assert_eq!(tokens.take(&token, now), None);
    }

    #[test]
    fn a_token_is_good_for_a_minute_and_then_makes_room() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let given: Vec<_> = (0..WAITING_MAX)
            .map(|ask| tokens.give(ask, now).unwrap())
            .collect();
        assert!(matches!(tokens.give(0, now), Err(TokenError::TooMany)));
        let late = now + LIFETIME;
        assert_eq!(tokens.take(&given[0], late), None);
        assert_eq!(
            tokens.take(&given[1], late - Duration::from_millis(1)),
            Some(1)
        );
        tokens.give(0, late).unwrap();
        for _ in 1..WAITING_MAX {
            tokens.give(0, late).unwrap();
        }
        assert!(tokens.give(0, late).is_err());
    }
}
