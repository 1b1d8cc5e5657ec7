//! Words of overlayfs (kernel: Documentation/filesystems/overlayfs.rst) that several parts must
//! agree on: who unpacks layers, who copies them, who tries whether they can be mounted, and who
//! mounts them.

/// Marks, with the value [`OPAQUE_SET`], a directory that hides what layers below have there.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// The value that [`OPAQUE`] has.
pub const OPAQUE_SET: &[u8] = b"y";

/// Options of every overlay. They keep attributes that a hostile layer may carry (redirections to
/// other directories, contents by reference) from being believed.
pub const SETTINGS: [(&str, &str); 3] = [
    ("index", "off"),
    ("redirect_dir", "nofollow"),
    ("metacopy", "off"),
];

/// Option of every writable overlay: no sync, because what is written through it has no life after
/// a crash of the node.
pub const VOLATILE: &str = "volatile";
