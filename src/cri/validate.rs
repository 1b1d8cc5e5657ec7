//! Checks that several calls share. Everything is checked before anything is touched; an error
//! names the field.

use std::collections::HashMap;

use super::{CallError, Front};
use crate::id::{ContainerId, ID_LENGTH, SandboxId};
use crate::lifecycle::spec::Map;

/// Longest name or other single word (Kubernetes: DNS subdomain, 253).
const NAME_MAX: usize = 253;
/// Labels and annotations of one object together (Kubernetes: 256 KiB of annotations).
const MAP_MAX: usize = 512 * 1024;
/// Longest path (`PATH_MAX` of Linux, with the final zero).
const PATH_MAX: usize = 4095;
/// Longest list of anything in a request.
pub(super) const LIST_MAX: usize = 4096;
/// Longest command line or environment together: two of them are what the kernel takes in all with
/// the usual limit of the stack (execve(2), "Limits on size of arguments and environment").
const WORDS_MAX: usize = 1024 * 1024;
/// Longest argument or `NAME=value`, without its final zero (`MAX_ARG_STRLEN`, 32 pages).
const WORD_MAX: usize = 32 * 4096 - 1;

/// A message that has to be there.
pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T, CallError> {
    value.ok_or_else(|| CallError::invalid(field, "is missing"))
}

/// The handler that a request names for an image: images are the same for all of them.
pub(super) fn default_handler(field: &str, handler: &str) -> Result<(), CallError> {
    if handler.is_empty() {
        return Ok(());
    }
    let why = format!("{handler:?} has no images of its own: leave it out");
    Err(CallError::invalid(field, why))
}

/// What is said for Windows would not be done.
pub(super) fn no_windows(field: &str, given: bool) -> Result<(), CallError> {
    match given {
        true => Err(CallError::invalid(
            field,
            "is given, and this node is Linux",
        )),
        false => Ok(()),
    }
}

/// A name that has to be there.
pub(super) fn name(field: &str, value: String) -> Result<String, CallError> {
    if value.is_empty() {
        return Err(CallError::invalid(field, "is missing"));
    }
    word(field, value)
}

/// A single word, possibly empty: bounded, without control characters.
pub(super) fn word(field: &str, value: String) -> Result<String, CallError> {
    if value.len() > NAME_MAX {
        let why = format!("has {} bytes, more than {NAME_MAX}", value.len());
        return Err(CallError::invalid(field, why));
    }
    if value.chars().any(char::is_control) {
        return Err(CallError::invalid(field, "holds a control character"));
    }
    Ok(value)
}

/// Labels or annotations.
pub(super) fn map(field: &str, value: HashMap<String, String>) -> Result<Map, CallError> {
    let size: usize = value
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if size > MAP_MAX {
        let why = format!("has {size} bytes, more than {MAP_MAX}");
        return Err(CallError::invalid(field, why));
    }
    Ok(value.into_iter().collect())
}

/// A list of words such as a command line.
pub(super) fn words(field: &str, value: Vec<String>) -> Result<Vec<String>, CallError> {
    let size: usize = value.iter().map(|word| word.len() + 1).sum();
    if size > WORDS_MAX || value.len() > LIST_MAX * 4 {
        let why = format!("has {} words of {size} bytes in all: too much", value.len());
        return Err(CallError::invalid(field, why));
    }
    if let Some(index) = value.iter().position(|word| word.contains('\0')) {
        return Err(CallError::invalid(
            format!("{field}[{index}]"),
            "holds a zero byte",
        ));
    }
    for (index, word) in value.iter().enumerate() {
        word_length(word.len())
            .map_err(|why| CallError::invalid(format!("{field}[{index}]"), why))?;
    }
    Ok(value)
}

/// Whether the kernel takes an argument or `NAME=value` of this length.
pub(super) fn word_length(length: usize) -> Result<(), String> {
    match length > WORD_MAX {
        true => Err(format!(
            "has {length} bytes; the kernel takes at most {WORD_MAX} in one argument or variable"
        )),
        false => Ok(()),
    }
}

/// A list that is not endless.
pub(super) fn bounded<T>(field: &str, value: Vec<T>) -> Result<Vec<T>, CallError> {
    if value.len() > LIST_MAX {
        let why = format!("has {} entries, more than {LIST_MAX}", value.len());
        return Err(CallError::invalid(field, why));
    }
    Ok(value)
}

/// A path of sane length without zero bytes.
fn path(field: &str, value: String) -> Result<String, CallError> {
    if value.len() > PATH_MAX || value.contains('\0') {
        return Err(CallError::invalid(
            field,
            "is longer than a path can be, or holds a zero byte",
        ));
    }
    Ok(value)
}

/// A path from the root, without `..`.
pub(super) fn absolute_path(field: &str, value: String) -> Result<String, CallError> {
    let value = path(field, value)?;
    if !value.starts_with('/') {
        return Err(CallError::invalid(
            field,
            format!("{value:?} is not an absolute path"),
        ));
    }
    if value.split('/').any(|part| part == "..") {
        return Err(CallError::invalid(field, format!("{value:?} holds \"..\"")));
    }
    Ok(value)
}

/// Like [`absolute_path`], or empty.
pub(super) fn absolute_path_or_empty(field: &str, value: String) -> Result<String, CallError> {
    if value.is_empty() {
        Ok(value)
    } else {
        absolute_path(field, value)
    }
}

/// A path below another one, or empty: relative, without `..`.
pub(super) fn relative_path_or_empty(field: &str, value: String) -> Result<String, CallError> {
    let value = path(field, value)?;
    if value.starts_with('/') {
        return Err(CallError::invalid(
            field,
            format!("{value:?} is not a relative path"),
        ));
    }
    if value.split('/').any(|part| part == "..") {
        return Err(CallError::invalid(field, format!("{value:?} holds \"..\"")));
    }
    Ok(value)
}

/// The beginning of an id in a filter: empty is no condition. What is a plain word but no hex
/// number is no error: nothing has such an id, and removing nothing succeeds.
pub(super) fn id_prefix(field: &str, value: String) -> Result<Option<String>, CallError> {
    if value.is_empty() {
        return Ok(None);
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if value.len() > ID_LENGTH {
        let why = format!("has {} bytes, more than an id's {ID_LENGTH}", value.len());
        return Err(CallError::invalid(field, why));
    }
    if !value.bytes().all(plain) {
        return Err(CallError::invalid(
            field,
            format!("{value:?} cannot be an id"),
        ));
    }
    Ok(Some(value))
}

/// Picks the one id that a prefix means.
fn unique<T>(noun: &'static str, prefix: String, mut found: Vec<T>) -> Result<T, CallError> {
    match (found.pop(), found.is_empty()) {
        (Some(id), true) => Ok(id),
        (Some(_), false) => Err(CallError::Ambiguous { noun, prefix }),
        (None, _) => Err(CallError::NotFound { noun, id: prefix }),
    }
}

impl Front {
    /// Finds a sandbox by its id or a unique beginning of it.
    pub(super) async fn find_sandbox(
        &self,
        field: &str,
        id: String,
    ) -> Result<SandboxId, CallError> {
        let prefix = id_prefix(field, id)?;
        let prefix = prefix.ok_or_else(|| CallError::invalid(field, "is missing"))?;
        match SandboxId::try_from(prefix.clone()) {
            Ok(id) => Ok(id),
            Err(_) => unique(
                "sandbox",
                prefix.clone(),
                self.store.sandbox_ids(&prefix).await?,
            ),
        }
    }

    /// Finds a container by its id or a unique beginning of it.
    pub(super) async fn find_container(
        &self,
        field: &str,
        id: String,
    ) -> Result<ContainerId, CallError> {
        let prefix = id_prefix(field, id)?;
        let prefix = prefix.ok_or_else(|| CallError::invalid(field, "is missing"))?;
        match ContainerId::try_from(prefix.clone()) {
            Ok(id) => Ok(id),
            Err(_) => unique(
                "container",
                prefix.clone(),
                self.store.container_ids(&prefix).await?,
            ),
        }
    }
}

/// Whether an object has every label of a selector.
pub(super) fn matches(labels: &Map, selector: &HashMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_climb_or_are_relative_are_refused_by_name() {
        for bad in ["relative", "/a/../b", "/a\0b"] {
            let error = absolute_path("config.x", bad.into()).expect_err(bad);
            assert!(error.to_string().starts_with("config.x: "), "{error}");
        }
        assert!(relative_path_or_empty("f", "/abs".into()).is_err());
        assert!(relative_path_or_empty("f", "a/../../b".into()).is_err());
        assert!(relative_path_or_empty("f", "main/0.log".into()).is_ok());
    }

    #[test]
    fn ids_are_words_of_bounded_length() {
        assert!(id_prefix("f", "a/b".into()).is_err());
        assert!(id_prefix("f", "a".repeat(65)).is_err());
        assert_eq!(
            id_prefix("f", "abc".into()).expect("a prefix"),
            Some("abc".to_owned())
        );
        assert_eq!(id_prefix("f", String::new()).expect("nothing"), None);
    }
}
