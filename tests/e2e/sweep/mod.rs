//! What exists and has no row goes; what has a row and is broken is mended or told; what is
//! somebody else's is left alone.

mod measure;
mod orphans;
mod repair;

use std::process::Output;

use serde_json::Value;

use crate::support::Node;

/// What `quiltd check` has said.
#[derive(Debug)]
struct Said {
    status: i32,
    /// Kind and resource of each difference, in order.
    found: Vec<(String, String)>,
    differences: Vec<Value>,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
            let errors = String::from_utf8_lossy(&output.stderr);
            panic!("no JSON ({error}): {text}{errors}");
        });
        let differences = answer["differences"].as_array().expect("a list").clone();
        let word = |one: &Value, key: &str| one[key].as_str().expect("a text").to_owned();
        Self {
            status: output.status.code().expect("an exit status"),
            found: differences
                .iter()
                .map(|one| (word(one, "kind"), word(one, "resource")))
                .collect(),
            differences,
        }
    }

    fn has(&self, expected: &[(&str, &str)]) -> bool {
        let found = self.found.iter().map(|(kind, thing)| (&**kind, &**thing));
        found.eq(expected.iter().copied())
    }
}

impl Node {
    fn check(&self) -> Said {
        Said::of(&self.operate(&["check", "-o", "json"]))
    }

    fn check_and_repair(&self) -> Said {
        Said::of(&self.operate(&["check", "--repair", "-o", "json"]))
    }
}

/// The mark of a node's things.
fn mark_of(node: &Node) -> String {
    format!("quilt:{}", node.names.root().display())
}
