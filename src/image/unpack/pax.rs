//! The records of a PAX extended header that matter to a layer.
//!
//! Others (access times, user names, comments) are passed over, as every unpacker does.

use super::entries::{ArchiveError, Extent};
use super::numbers::{Time, decimal, record, time};

/// What the extended header says about the entry after it.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
}

/// GNU's sparse files in PAX clothes (GNU tar manual, "Storing Sparse Files").
#[derive(Debug, Default)]
pub(super) struct Sparse {
    pub(super) map: Vec<Extent>,
    /// Version 1.0: the map is at the start of the data.
    pub(super) in_data: bool,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    offset: Option<u64>,
}

impl Pax {
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, ArchiveError> {
        let mut pax = Self::default();
        // Some writers pad with NULs beyond the last record.
        while data.first().is_some_and(|b| *b != 0) {
            let (key, value, rest) = record(data).ok_or(ArchiveError::Field("PAX record"))?;
            pax.take(key, value)?;
            data = rest;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        let bad = || ArchiveError::Field("PAX record");
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // An empty value takes the record back.
        if value.is_empty() {
            return Ok(());
        }
        let id = || {
            decimal(value)
                .and_then(|id| i64::try_from(id).ok())
                .ok_or_else(bad)
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value).ok_or_else(bad)?),
            b"uid" => self.uid = Some(id()?),
            b"gid" => self.gid = Some(id()?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(bad)?),
            b"GNU.sparse.major" => self.sparse.in_data = value == b"1",
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = Some(decimal(value).ok_or_else(bad)?);
            }
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal(value).ok_or_else(bad)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or(ArchiveError::Sparse)?;
                let length = decimal(value).ok_or_else(bad)?;
                self.sparse.map.push(Extent { offset, length });
            }
            b"GNU.sparse.map" => {
                let count = value.iter().filter(|b| **b == b',').count() as u64 + 1;
                self.sparse.map = Self::pairs(value.split(|b| *b == b','), count)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// `count` decimal numbers as offset and length in turn.
    pub(super) fn pairs<'a>(
        mut numbers: impl Iterator<Item = &'a [u8]>,
        count: u64,
    ) -> Result<Vec<Extent>, ArchiveError> {
        if !count.is_multiple_of(2) {
            return Err(ArchiveError::Sparse);
        }
        let mut next = || numbers.next().and_then(decimal).ok_or(ArchiveError::Sparse);
        (0..count / 2)
            .map(|_| {
                Ok(Extent {
                    offset: next()?,
                    length: next()?,
                })
            })
            .collect()
    }
}
