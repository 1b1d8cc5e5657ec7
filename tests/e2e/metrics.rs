//! The metrics endpoint.
