//! Names of devices (CDI specification, "Qualified device name"), and where a container asks for
//! them.

use std::collections::BTreeMap;

/// What annotations that ask for devices begin with.
const ANNOTATION: &str = "cdi.k8s.io/";
/// Devices that one container can ask for.
const DEVICES_MAX: usize = 256;
/// Longest part of a name.
const PART_MAX: usize = 253;

/// The parts of `vendor.com/class=device`.
///
/// # Errors
/// Which part is wrong.
pub(super) fn split(name: &str) -> Result<(&str, &str, &str), String> {
    let parts = name.split_once('=').and_then(|(kind, device)| {
        let (vendor, class) = kind.split_once('/')?;
        Some((vendor, class, device))
    });
    let (vendor, class, device) =
        parts.ok_or_else(|| format!("{name:?} is not of the form vendor.com/class=device"))?;
    check_kind(vendor, class)?;
    check_device(device)?;
    Ok((vendor, class, device))
}

/// A kind, `vendor.com/class`.
pub(super) fn split_kind(kind: &str) -> Result<(&str, &str), String> {
    let parts = kind.split_once('/');
    let (vendor, class) =
        parts.ok_or_else(|| format!("kind {kind:?} is not of the form vendor.com/class"))?;
    check_kind(vendor, class)?;
    Ok((vendor, class))
}

fn check_kind(vendor: &str, class: &str) -> Result<(), String> {
    let letter = |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic());
    if !letter(vendor) || !is_sound(vendor, "._-") {
        return Err(format!("{vendor:?} is not the name of a vendor"));
    }
    if !letter(class) || !is_sound(class, "_-") {
        return Err(format!("{class:?} is not the name of a class of devices"));
    }
    Ok(())
}

pub(super) fn check_device(device: &str) -> Result<(), String> {
    match is_sound(device, "._:-") {
        true => Ok(()),
        false => Err(format!("{device:?} is not the name of a device")),
    }
}

/// Letters and digits, and `between` them some others.
fn is_sound(text: &str, between: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    text.len() <= PART_MAX
        && text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || between.contains(c))
}

/// The devices that a container asks for, by their field and by annotations, each once.
///
/// # Errors
/// The field or annotation, and what is wrong with it.
pub fn requested(
    names: &[String],
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<String>, (String, String)> {
    let mut wanted: Vec<String> = Vec::new();
    let mut add = |place: String, name: &str| match split(name) {
        Err(why) => Err((place, why)),
        Ok(_) if wanted.iter().any(|known| known == name) => Ok(()),
        Ok(_) if wanted.len() >= DEVICES_MAX => Err((
            place,
            format!("is one device too many; at most {DEVICES_MAX} can be had"),
        )),
        Ok(_) => {
            wanted.push(name.to_owned());
            Ok(())
        }
    };
    for (index, name) in names.iter().enumerate() {
        add(format!("CDI_devices[{index}].name"), name)?;
    }
    for (key, value) in annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION))
    {
        for name in value.split(',') {
            add(format!("annotations[{key:?}]"), name)?;
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_three_parts() {
        assert_eq!(split("v.com/gpu=0"), Ok(("v.com", "gpu", "0")));
        assert_eq!(split("v/c=a.b:c-d_e"), Ok(("v", "c", "a.b:c-d_e")));
        for wrong in [
            "",
            "gpu",
            "v/gpu",
            "v=0",
            "/gpu=0",
            "v/=0",
            "v/gpu=",
            "1v/gpu=0",
            "v/g.u=0",
            "v/gpu=-0",
            "v/gpu=0-",
            "v/gpu=a/b",
            "v./gpu=0",
            "v/gpu=\u{e9}",
            "v/gpu=..",
        ] {
            assert!(split(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn devices_are_asked_for_by_field_and_by_annotation_each_once() {
        let names = ["v/c=1".to_owned(), "v/c=2".to_owned()];
        let annotation = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let annotations = BTreeMap::from([
            annotation("cdi.k8s.io/plugin_a", "v/c=2,v/c=3"),
            annotation("example.com/cdi.k8s.io", "nonsense"),
        ]);
        let wanted = requested(&names, &annotations).expect("valid");
        assert_eq!(wanted, ["v/c=1", "v/c=2", "v/c=3"]);
        let bad = BTreeMap::from([annotation("cdi.k8s.io/x", "v/c=1,")]);
        let (place, _) = requested(&[], &bad).expect_err("an empty name");
        assert_eq!(place, "annotations[\"cdi.k8s.io/x\"]");
        let many: Vec<_> = (0..=DEVICES_MAX).map(|n| format!("v/c={n}")).collect();
        assert!(requested(&many, &BTreeMap::new()).is_err());
    }
}
