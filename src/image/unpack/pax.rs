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
        // An empty value takes back what an earlier record said (pax, "Extended Header Keywords").
        let given = !value.is_empty();
        let number = || match given {
            true => decimal(value).map(Some).ok_or_else(bad),
            false => Ok(None),
        };
        let id = || match number()?.map(i64::try_from) {
            Some(id) => id.map(Some).map_err(|_| bad()),
            None => Ok(None),
        };
        let text = || given.then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = number()?,
            b"uid" => self.uid = id()?,
            b"gid" => self.gid = id()?,
            b"mtime" if given => self.mtime = Some(time(value).ok_or_else(bad)?),
            b"mtime" => self.mtime = None,
            b"GNU.sparse.major" => self.sparse.in_data = value == b"1",
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = number()?,
            b"GNU.sparse.offset" => self.sparse.offset = number()?,
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or(ArchiveError::Sparse)?;
                let length = decimal(value).ok_or_else(bad)?;
                self.sparse.map.push(Extent { offset, length });
            }
            b"GNU.sparse.map" if given => {
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
