//! The hardware address that a pod may ask for, where plugins connect it.

use super::spec::Map;

/// The annotation.
pub const MAC: &str = "network.quilt/mac";

/// The hardware address that a pod asks for: one of a single station, as six bytes with colons.
///
/// # Errors
/// Why the text cannot be that, in words.
pub fn requested(annotations: &Map) -> Result<Option<&str>, String> {
    let Some(text) = annotations.get(MAC) else {
        return Ok(None);
    };
    let byte = |part: &str| {
        let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    match bytes.as_deref() {
        Some([0, 0, 0, 0, 0, 0]) => Err(format!("{text:?} is nobody's address")),
        Some([first, _, _, _, _, _]) if first % 2 == 1 => {
            Err(format!("{text:?} is the address of a group"))
        }
        Some([_, _, _, _, _, _]) => Ok(Some(text)),
        _ => Err(format!(
            "{text:?} is not six bytes such as 0a:58:0a:00:00:07"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Option<String>, String> {
        let annotations = Map::from([(MAC.to_owned(), text.to_owned())]);
        requested(&annotations).map(|mac| mac.map(str::to_owned))
    }

    #[test]
    fn a_hardware_address_is_that_of_one_station() {
        assert_eq!(requested(&Map::new()), Ok(None));
        let good = "0a:58:0A:00:00:07";
        assert_eq!(asked(good), Ok(Some(good.to_owned())));
        for bad in [
            "",
            "0a:58:0a:00:00",
            "0a:58:0a:00:00:07:08",
            "0a-58-0a-00-00-07",
            "a:58:a:0:0:7",
            "+a:58:0a:00:00:07",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "0a:58:0a:00:00:0g",
        ] {
            assert!(asked(bad).is_err(), "{bad:?}");
        }
    }
}
