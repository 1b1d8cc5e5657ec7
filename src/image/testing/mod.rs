//! What several tests of images are made of. Compiled for tests and fuzzers only.

mod archive;
#[cfg(test)]
mod image;
#[cfg(test)]
pub(crate) mod server;

pub(crate) use archive::{Tar, gzip};

#[cfg(test)]
pub(crate) use image::TestImage;
