//! What a container runs: image and request put together (OCI image spec "conversion", and the
//! rules Kubernetes documents for `command` and `args`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::signal;
use super::spec::{ContainerSpec, ImageSpec};

/// Where commands are looked for when neither image nor request says so.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process of a container, decided when the container is created.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Command line, not empty.
    pub args: Vec<String>,
    /// Environment as `NAME=value`.
    pub env: Vec<String>,
    /// More of it that is no UTF-8: `NAME=value`, each in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_bytes: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// User, by number or name; empty is root.
    pub user: String,
    /// Group, by number or name; `None` is the user's own.
    pub group: Option<String>,
    /// Signal of a stop.
    pub stop_signal: i32,
}

/// Neither image nor request says what to run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither the image nor the request names a command")]
pub struct NoCommand;

/// Puts image and request together.
///
/// # Errors
/// When there is no command.
pub fn resolve(
    image: &ImageSpec,
    spec: &ContainerSpec,
    hostname: &str,
) -> Result<ProcessSpec, NoCommand> {
    let mut args = Vec::new();
    if spec.command.is_empty() {
        args.extend(image.entrypoint.iter().cloned());
        let rest = if spec.args.is_empty() {
            &image.cmd
        } else {
            &spec.args
        };
        args.extend(rest.iter().cloned());
    } else {
        // A command of one's own drops the image's arguments too.
        args.extend(spec.command.iter().chain(&spec.args).cloned());
    }
    if args.first().is_none_or(String::is_empty) {
        return Err(NoCommand);
    }
    let (user, group) = user(image, spec);
    let mut env = environment(image, spec, hostname);
    let env_bytes = bytes(spec, &mut env);
    Ok(ProcessSpec {
        args,
        env,
        env_bytes,
        cwd: [&spec.working_dir, &image.working_dir]
            .into_iter()
            .find(|dir| !dir.is_empty())
            .cloned()
            .unwrap_or_else(|| "/".into()),
        user,
        group,
        stop_signal: spec
            .stop_signal
            .or_else(|| signal::parse(&image.stop_signal))
            .unwrap_or(signal::TERM),
    })
}

fn user(image: &ImageSpec, spec: &ContainerSpec) -> (String, Option<String>) {
    let security = &spec.security;
    let group = security.run_as_group.map(|gid| gid.to_string());
    if let Some(uid) = security.run_as_user {
        return (uid.to_string(), group);
    }
    if !security.run_as_username.is_empty() {
        return (security.run_as_username.clone(), group);
    }
    match image.user.split_once(':') {
        Some((user, of_image)) => (
            user.to_owned(),
            group.or_else(|| Some(of_image.to_owned()).filter(|g| !g.is_empty())),
        ),
        None => (image.user.clone(), group),
    }
}

fn environment(image: &ImageSpec, spec: &ContainerSpec, hostname: &str) -> Vec<String> {
    let mut env: Vec<(String, String)> = vec![
        ("PATH".into(), DEFAULT_PATH.into()),
        ("HOSTNAME".into(), hostname.into()),
    ];
    if spec.tty {
        env.push(("TERM".into(), "xterm".into()));
    }
    let of_image = image.env.iter().map(|line| match line.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (line.clone(), String::new()),
    });
    for (name, value) in of_image.chain(spec.environment.iter().cloned()) {
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some(slot) => slot.1 = value,
            None => env.push((name, value)),
        }
    }
    env.into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

/// Variables whose values are no UTF-8. They take the place of others of their names.
fn bytes(spec: &ContainerSpec, env: &mut Vec<String>) -> Vec<String> {
    let bytes = spec.environment_bytes.iter();
    let whole = bytes.map(|(name, value)| {
        let named = format!("{name}=");
        env.retain(|entry| !entry.starts_with(&named));
        // It has been encoded by us.
        let value = STANDARD.decode(value).unwrap_or_default();
        STANDARD.encode([named.as_bytes(), &value].concat())
    });
    whole.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_no_utf8_takes_the_place_of_the_images() {
        let image = ImageSpec {
            env: vec!["A=1".into(), "B=2".into()],
            ..Default::default()
        };
        let spec = ContainerSpec {
            command: vec!["true".into()],
            environment_bytes: vec![("A".into(), STANDARD.encode(b"\xff=\xfe"))],
            ..Default::default()
        };
        let process = resolve(&image, &spec, "pod").expect("a process");
        assert!(!process.env.iter().any(|entry| entry.starts_with("A=")));
        assert!(process.env.contains(&"B=2".to_owned()));
        let decoded = STANDARD.decode(&process.env_bytes[0]).expect("base64");
        assert_eq!(decoded, b"A=\xff=\xfe");
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// The table in Kubernetes' documentation of `command` and `args`.
    #[test]
    fn command_and_args_follow_the_table() {
        let image = ImageSpec {
            entrypoint: words("ep-1 foo"),
            cmd: words("bar"),
            ..Default::default()
        };
        for (command, args, runs) in [
            ("", "", "ep-1 foo bar"),
            ("ep-2", "", "ep-2"),
            ("", "zoo boo", "ep-1 foo zoo boo"),
            ("ep-2", "zoo boo", "ep-2 zoo boo"),
        ] {
            let spec = ContainerSpec {
                command: words(command),
                args: words(args),
                ..Default::default()
            };
            assert_eq!(
                resolve(&image, &spec, "h").expect("a command").args,
                words(runs)
            );
        }
    }

    #[test]
    fn no_command_at_all_is_an_error() {
        assert_eq!(
            resolve(&ImageSpec::default(), &ContainerSpec::default(), "h"),
            Err(NoCommand)
        );
    }

    #[test]
    fn the_request_overrides_the_image_environment() {
        let image = ImageSpec {
            cmd: words("sh"),
            env: vec!["A=1".into(), "PATH=/image".into()],
            ..Default::default()
        };
        let spec = ContainerSpec {
            environment: vec![("A".into(), "2".into()), ("B".into(), "x=y".into())],
            ..Default::default()
        };
        let process = resolve(&image, &spec, "pod").expect("a command");
        assert_eq!(process.env, ["PATH=/image", "HOSTNAME=pod", "A=2", "B=x=y"]);
        assert_eq!(
            (process.cwd.as_str(), process.stop_signal),
            ("/", signal::TERM)
        );
    }

    #[test]
    fn users_come_from_the_request_first() {
        let image = ImageSpec {
            cmd: words("sh"),
            user: "www:data".into(),
            ..Default::default()
        };
        let mut spec = ContainerSpec::default();
        let of = |spec: &ContainerSpec| {
            let process = resolve(&image, spec, "h").expect("a command");
            (process.user, process.group)
        };
        assert_eq!(of(&spec), ("www".into(), Some("data".into())));
        spec.security.run_as_user = Some(7);
        assert_eq!(of(&spec), ("7".into(), None));
        spec.security.run_as_group = Some(8);
        assert_eq!(of(&spec), ("7".into(), Some("8".into())));
    }
}
