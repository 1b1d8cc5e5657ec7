//! The dictionary of SPDY/3 header compression (SPDY/3 draft, section 2.6.10.1): words that headers
//! often hold, each after its length, and a text without lengths.

use std::sync::LazyLock;

/// What both sides prime their compressors with.
pub(super) static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split_ascii_whitespace() {
        // One of them has a space inside, which stands as `_` in the list.
        let word = word.replace('_', " ");
        let length = u32::try_from(word.len()).unwrap_or_default();
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
});

const WORDS: &str = "
    options head post put delete trace accept accept-charset accept-encoding accept-language
    accept-ranges age allow authorization cache-control connection content-base content-encoding
    content-language content-length content-location content-md5 content-range content-type date
    etag expect expires from host if-match if-modified-since if-none-match if-range
    if-unmodified-since last-modified location max-forwards pragma proxy-authenticate
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url
    public set-cookie keep-alive origin
";

const TEXT: &str = "\
    10010120120220520630030230330430530630740240540640740840941041141241341441541641750250450520\
    3 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unautho\
    rized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unava\
    ilableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat\
    , Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+\
    xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=is\
    o-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_that_peers_have() {
        assert_eq!(DICTIONARY.len(), 1423);
        // Adler-32 (RFC 1950): a compressed header block names its dictionary by it.
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }
}
