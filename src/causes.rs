//! The text of an error with its causes, in one line: for a row, a log line or an answer. Every
//! error says what was being done; why it failed is its cause.

use std::error::Error;

/// The text of an error and of all its causes.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    add_causes(error.to_string(), error)
}

/// `text`, which stands for an error, and the causes of that. One that the text ends with already
/// is not said twice.
#[must_use]
pub fn add_causes(mut text: String, error: &dyn Error) -> String {
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("{0}")]
        Doing(&'static str, #[source] Box<Failure>),
        #[error(transparent)]
        Same(Box<Failure>),
        #[error("open")]
        Open(#[source] io::Error),
    }

    #[test]
    fn every_cause_is_said_once() {
        let open = || Box::new(Failure::Open(io::ErrorKind::NotFound.into()));
        let inner = Box::new(Failure::Same(open()));
        let error = Failure::Doing("start", Box::new(Failure::Doing("go on: open", inner)));
        assert_eq!(with_causes(&error), "start: go on: open: entity not found");
        let text = add_causes("no".to_owned(), &error);
        assert_eq!(text, "no: go on: open: entity not found");
        let alone = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(with_causes(&alone), "entity not found");
    }
}
