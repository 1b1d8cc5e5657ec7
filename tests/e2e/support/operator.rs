//! Operators' commands and what they answer.

use std::process::Output;

use serde_json::Value;

use super::Node;

/// What a command printed, which must have succeeded.
pub(crate) fn said(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the command failed: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command complained about, which must have failed.
pub(crate) fn complained(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "the command succeeded: {text}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

impl Node {
    /// A command's answer as JSON.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["-o", "json"]].concat();
        let text = said(&self.operate(&arguments));
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{arguments:?} is no JSON: {error}: {text}"))
    }
}

/// The texts of one member of every object of a list.
pub(crate) fn column(list: &Value, name: &str) -> Vec<String> {
    let list = list.as_array().expect("a list");
    let texts = list.iter().map(|row| match &row[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    texts.collect()
}
