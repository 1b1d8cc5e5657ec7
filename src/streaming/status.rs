//! How a session ended, as its error channel says it: a `Status` of the Kubernetes API in JSON, or
//! the text of an error for older protocols.

use serde_json::json;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// With exit code 0, or with the end of what was attached to.
    Success,
    /// With another exit code.
    ExitCode(i32),
    /// Not as it should.
    Failed(String),
}

impl Ending {
    /// What goes over the error channel; nothing when there is nothing to say.
    pub(super) fn bytes(&self, json_status: bool) -> Option<Vec<u8>> {
        let message = match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => {
                format!("command terminated with non-zero exit code: {code}")
            }
            Self::Failed(why) => why.clone(),
        };
        if !json_status {
            return (*self != Self::Success).then(|| message.into_bytes());
        }
        let status = match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(_) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }),
        };
        Some(status.to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_a_cause_with_a_number_in_words() {
        let bytes = Ending::ExitCode(3).bytes(true).unwrap();
        let status: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["reason"], "NonZeroExitCode");
        let cause = &status["details"]["causes"][0];
        assert_eq!(
            (&cause["reason"], &cause["message"]),
            (&"ExitCode".into(), &"3".into())
        );
    }

    #[test]
    fn older_protocols_hear_of_errors_alone() {
        assert_eq!(Ending::Success.bytes(false), None);
        let failed = Ending::Failed("no such file".into());
        assert_eq!(failed.bytes(false).unwrap(), b"no such file");
        let success = Ending::Success.bytes(true).unwrap();
        assert_eq!(success, br#"{"metadata":{},"status":"Success"}"#);
    }
}
