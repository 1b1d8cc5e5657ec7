//! Whom to ask for one blob, and in which order, when somebody has served something else.
//!
//! ```text
//!   together: each host goes on where the one before broke off
//!      │ what came is wrong
//!      ▼
//!   alone: one host after the other, each from nothing, but not the one that is known to be wrong
//! ```
//! Bytes from several hosts that make a wrong blob say nothing about who was wrong; that is why
//! each has to show it alone then. Every host is asked twice at most.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::error::ImageError;
use super::hosts::Endpoint;
use super::session::Session;

/// The hosts that may serve a blob.
#[derive(Debug)]
pub(super) struct Sources<'s> {
    pub(super) session: &'s Session,
    /// In the operator's order.
    hosts: Vec<&'s Endpoint>,
    order: Order,
    /// Positions of hosts that bytes have come from since the blob was begun.
    gave: Mutex<BTreeSet<usize>>,
}

/// Who is asked now, by positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Together,
    Alone { at: usize, wrong: Option<usize> },
}

/// A host whose turn it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn<'s> {
    at: usize,
    pub(super) endpoint: &'s Endpoint,
    /// Nobody else is asked after it.
    pub(super) is_last: bool,
}

impl<'s> Sources<'s> {
    pub(super) fn new(session: &'s Session) -> Self {
        Self {
            hosts: session.pulling(),
            session,
            order: Order::Together,
            gave: Mutex::default(),
        }
    }

    /// The hosts to ask now, one after the other.
    pub(super) fn turns(&self) -> Vec<Turn<'s>> {
        let turns = match self.order {
            Order::Together => 0..self.hosts.len(),
            Order::Alone { at, .. } => at..at + 1,
        };
        let last = turns.end;
        let turn = |at: usize| {
            self.hosts.get(at).map(|endpoint| Turn {
                at,
                endpoint,
                is_last: at + 1 == last,
            })
        };
        turns.filter_map(turn).collect()
    }

    /// Bytes have come from a host.
    pub(super) fn gave(&self, turn: &Turn<'_>) {
        let mut gave = self.gave.lock().unwrap_or_else(PoisonError::into_inner);
        gave.insert(turn.at);
    }

    /// What has come is not what was asked for, or cannot be used; `kept` says that a part of it
    /// had been here before. Whether somebody is left to be asked, from nothing.
    pub(super) fn wrong(&mut self, kept: bool, error: &ImageError) -> bool {
        let gave = self.gave.get_mut().unwrap_or_else(PoisonError::into_inner);
        let gave = std::mem::take(gave);
        let (order, guilty) = self.order.after_wrong(&gave, kept);
        self.order = order;
        // With nobody else to ask the pull itself fails of it, and says so.
        if let Some(endpoint) = guilty.and_then(|at| self.hosts.get(at))
            && self.hosts.len() > 1
        {
            self.session.served_wrong(endpoint, error);
        }
        !self.turns().is_empty()
    }

    /// It did not come. Whether somebody is left to be asked, from nothing.
    pub(super) fn failed(&mut self) -> bool {
        self.order = self.order.after_failure(self.hosts.len());
        !self.turns().is_empty()
    }
}

impl Order {
    /// And who was wrong, if that is known.
    fn after_wrong(self, gave: &BTreeSet<usize>, kept: bool) -> (Self, Option<usize>) {
        match self {
            Self::Alone { at, wrong } => {
                let next = Self::Alone { at: at + 1, wrong };
                (next.passing_over(), Some(at))
            }
            Self::Together => {
                let only = gave.first().filter(|_| gave.len() == 1 && !kept);
                let wrong = only.copied();
                (Self::Alone { at: 0, wrong }.passing_over(), wrong)
            }
        }
    }

    fn after_failure(self, hosts: usize) -> Self {
        match self {
            Self::Alone { at, wrong } => Self::Alone { at: at + 1, wrong }.passing_over(),
            // All of them were asked.
            Self::Together => Self::Alone {
                at: hosts,
                wrong: None,
            },
        }
    }

    fn passing_over(self) -> Self {
        match self {
            Self::Alone { at, wrong } if wrong == Some(at) => Self::Alone { at: at + 1, wrong },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is asked alone after what came together was wrong, when each of them is wrong as well.
    fn alone(gave: &[usize], kept: bool, hosts: usize) -> (Vec<usize>, Option<usize>) {
        let gave = gave.iter().copied().collect();
        let (mut order, guilty) = Order::Together.after_wrong(&gave, kept);
        let mut asked = Vec::new();
        while let Order::Alone { at, .. } = order
            && at < hosts
        {
            asked.push(at);
            let said;
            (order, said) = order.after_wrong(&BTreeSet::from([at]), false);
            assert_eq!(said, Some(at));
        }
        (asked, guilty)
    }

    #[test]
    fn who_was_wrong_by_itself_is_not_asked_again_and_everybody_else_is_once() {
        assert_eq!(alone(&[0], false, 1), (vec![], Some(0)));
        assert_eq!(alone(&[0], false, 3), (vec![1, 2], Some(0)));
        assert_eq!(alone(&[1], false, 3), (vec![0, 2], Some(1)));
    }

    #[test]
    fn where_several_had_a_part_nobody_is_blamed_before_it_was_asked_alone() {
        assert_eq!(alone(&[0, 1], false, 2), (vec![0, 1], None));
        assert_eq!(alone(&[0], true, 1), (vec![0], None));
    }

    #[test]
    fn who_does_not_answer_is_passed_over() {
        let end = Order::Together.after_failure(2);
        assert_eq!(end, Order::Alone { at: 2, wrong: None });
        let wrong = Some(1);
        let next = Order::Alone { at: 0, wrong }.after_failure(3);
        assert_eq!(next, Order::Alone { at: 2, wrong });
    }
}
