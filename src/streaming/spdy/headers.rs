//! Header blocks: names and values behind one zlib stream a direction, primed with a dictionary
//! (SPDY/3 draft, section 2.6.10). Pure; what comes out of a block is bounded before it is looked
//! at.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;
use super::dictionary::DICTIONARY;

/// The longest block, decompressed.
pub const BLOCK_MAX_BYTES: usize = 16 * 1024;
/// Most headers in a block.
pub const HEADERS_MAX: usize = 64;
/// Output is asked for in pieces of this size.
const STEP: usize = 1024;

/// Headers of a stream, in their order. Names are in lower case, as SPDY has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Headers from pairs of a name in lower case and a value.
    #[must_use]
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// The first value of a header.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, values) = self.0.iter().find(|(own, _)| own == name)?;
        // Several values of one name are joined by NUL.
        values.split('\0').next()
    }

    fn parse(block: &[u8]) -> Result<Self, SpdyError> {
        let mut rest = block;
        let count = usize::try_from(number(&mut rest)?).unwrap_or(usize::MAX);
        if count > HEADERS_MAX {
            return Err(SpdyError::Headers("there are too many"));
        }
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut rest)?;
            let value = text(&mut rest)?;
            if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                return Err(SpdyError::Headers("a name is empty or not in lower case"));
            }
            if pairs.iter().any(|(other, _)| *other == name) {
                return Err(SpdyError::Headers("a name comes twice"));
            }
            pairs.push((name, value));
        }
        if !rest.is_empty() {
            return Err(SpdyError::Headers("the block is longer than its headers"));
        }
        Ok(Self(pairs))
    }

    fn to_block(&self) -> Vec<u8> {
        let mut block = Vec::new();
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
        block.extend_from_slice(&length(self.0.len()));
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&length(text.len()));
            block.extend_from_slice(text.as_bytes());
        }
        block
    }
}

fn number(rest: &mut &[u8]) -> Result<u32, SpdyError> {
    let (head, tail) = rest
        .split_first_chunk()
        .ok_or(SpdyError::Headers("the block is cut short"))?;
    *rest = tail;
    Ok(u32::from_be_bytes(*head))
}

fn text(rest: &mut &[u8]) -> Result<String, SpdyError> {
    let length = usize::try_from(number(rest)?).unwrap_or(usize::MAX);
    let (head, tail) = rest
        .split_at_checked(length)
        .ok_or(SpdyError::Headers("the block is cut short"))?;
    *rest = tail;
    let text = std::str::from_utf8(head).map_err(|_| SpdyError::Headers("one is not UTF-8"))?;
    Ok(text.to_owned())
}

/// Reads the blocks of one direction, in their order.
#[derive(Debug)]
pub(super) struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// The headers of a compressed block.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        Headers::parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, SpdyError> {
        const BROKEN: SpdyError = SpdyError::Headers("the compressed block is broken");
        let mut output = Vec::new();
        loop {
            output.reserve(STEP);
            let (before, written) = (self.0.total_in(), output.len());
            let step = self
                .0
                .decompress_vec(input, &mut output, FlushDecompress::Sync);
            let consumed = usize::try_from(self.0.total_in() - before).unwrap_or(usize::MAX);
            input = input.get(consumed..).ok_or(BROKEN)?;
            match step {
                Ok(Status::Ok | Status::BufError) => {}
                // The stream goes on for as long as the connection does.
                Ok(Status::StreamEnd) => return Err(BROKEN),
                Err(error) if error.needs_dictionary().is_some() => {
                    let primed = self.0.set_dictionary(&DICTIONARY);
                    primed.map_err(|_| SpdyError::Headers("they need another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(BROKEN),
            }
            if output.len() > BLOCK_MAX_BYTES {
                return Err(SpdyError::Headers("they are too long"));
            }
            if consumed == 0 && output.len() == written {
                // Nothing moves: all is read, or what is left is not a block.
                return if input.is_empty() {
                    Ok(output)
                } else {
                    Err(BROKEN)
                };
            }
        }
    }
}

/// Writes the blocks of one direction, in their order.
#[derive(Debug, Default)]
pub(super) struct Deflater(Option<Compress>);

impl Deflater {
    /// The compressed block of `headers`.
    pub(super) fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        const BROKEN: SpdyError = SpdyError::Headers("they cannot be compressed");
        let compress = match &mut self.0 {
            Some(compress) => compress,
            none => {
                let mut compress = Compress::new(Compression::fast(), true);
                compress.set_dictionary(&DICTIONARY).map_err(|_| BROKEN)?;
                none.insert(compress)
            }
        };
        let block = headers.to_block();
        let mut input = block.as_slice();
        let mut output = Vec::new();
        loop {
            output.reserve(STEP);
            let before = compress.total_in();
            let step = compress.compress_vec(input, &mut output, FlushCompress::Sync);
            step.map_err(|_| BROKEN)?;
            let consumed = usize::try_from(compress.total_in() - before).unwrap_or(usize::MAX);
            input = input.get(consumed..).ok_or(BROKEN)?;
            // With room to spare the flush is complete.
            if input.is_empty() && output.len() < output.capacity() {
                return Ok(output);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Headers::new(pairs.iter().map(own).collect())
    }

    #[test]
    fn blocks_of_one_direction_follow_each_other() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for value in ["error", "stdin", "stdout", "error"] {
            let sent = headers(&[("streamtype", value), ("requestid", "7")]);
            let block = deflater.write(&sent).unwrap();
            assert_eq!(inflater.read(&block).unwrap(), sent);
        }
        assert_eq!(headers(&[("port", "80\081")]).get("port"), Some("80"));
        assert_eq!(headers(&[]).get("port"), None);
    }

    #[test]
    fn a_block_that_grows_beyond_the_bound_is_refused() {
        let bomb = headers(&[("a", &"x".repeat(1 << 20))]);
        let block = Deflater::default().write(&bomb).unwrap();
        assert!(block.len() < 16 * 1024, "{}", block.len());
        let error = Inflater::default().read(&block).unwrap_err();
        assert_eq!(error.to_string(), "headers: they are too long");
    }

    #[test]
    fn a_block_that_is_no_list_of_headers_is_refused() {
        let many = vec![(String::from("a"), String::new()); HEADERS_MAX + 1];
        for bad in [
            headers(&[("Upper", "x")]),
            headers(&[("", "x")]),
            headers(&[("twice", "x"), ("twice", "y")]),
            Headers::new(many),
        ] {
            let block = Deflater::default().write(&bad).unwrap();
            assert!(Inflater::default().read(&block).is_err(), "{bad:?}");
        }
        for bad in [&b""[..], b"not zlib", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]] {
            assert!(Inflater::default().read(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            pairs in prop::collection::btree_map("[a-z0-9-]{1,20}", "\\PC{0,200}", 0..20),
        ) {
            let sent = Headers::new(pairs.into_iter().collect());
            let block = Deflater::default().write(&sent).unwrap();
            prop_assert_eq!(Inflater::default().read(&block).unwrap(), sent);
        }

        #[test]
        fn any_bytes_are_headers_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let _ = Headers::parse(&bytes);
            let mut inflater = Inflater::default();
            let _ = inflater.read(&bytes);
            // What it knows of the dictionary does not make it take more.
            let mut block = Deflater::default().write(&Headers::default()).unwrap();
            block.extend_from_slice(&bytes);
            let _ = Inflater::default().read(&block);
        }
    }
}
