//! What several tests of images are made of. Compiled for tests only.

mod archive;
mod image;
pub(crate) mod server;

pub(crate) use archive::{Tar, gzip};

pub(crate) use image::TestImage;
