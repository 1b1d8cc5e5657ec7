//! Keys and certificates of a test's own, made by `openssl`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
];

/// An authority in `dir`: `NAME.pem` and `NAME.key`.
pub(crate) fn authority(dir: &Path, name: &str) {
    let subject = format!("/CN={name}");
    let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
    let ask = ["req", "-x509", "-days", "2", "-subj", &subject];
    let into = ["-keyout", &key, "-out", &certificate];
    openssl(dir, &[&ask[..], &KEY, &into].concat(), b"");
}

/// A certificate in `dir` that `authority` has signed, with these further lines of OpenSSL's
/// configuration: `NAME.pem` and `NAME.key`.
pub(crate) fn signed(dir: &Path, authority: &str, name: &str, lines: &str) {
    let subject = format!("/CN={name}");
    let [key, request, certificate, extensions] =
        ["key", "csr", "pem", "ext"].map(|ending| format!("{name}.{ending}"));
    fs::write(dir.join(&extensions), lines).expect("a file");
    let ask = ["req", "-subj", &subject, "-keyout", &key, "-out", &request];
    openssl(dir, &[&ask[..], &KEY].concat(), b"");
    let (by, with) = (format!("{authority}.pem"), format!("{authority}.key"));
    let sign = ["x509", "-req", "-days", "2", "-in", &request];
    let rest = [
        "-CA",
        &by,
        "-CAkey",
        &with,
        "-CAcreateserial",
        "-extfile",
        &extensions,
        "-out",
        &certificate,
    ];
    openssl(dir, &[&sign[..], &rest].concat(), b"");
}

/// Runs `openssl` in `dir` and gives what it writes.
pub(crate) fn openssl(dir: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(arguments).current_dir(dir);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("openssl, of Debian's package");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input).expect("openssl reads");
    drop(stdin);
    let output = child.wait_with_output().expect("openssl ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
    output.stdout
}
