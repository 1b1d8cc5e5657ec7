//! Exits: none is lost.
