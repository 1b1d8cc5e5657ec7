//! The `auth` of a Docker configuration, which CRI's `AuthConfig` has too: base64 of
//! `user:password`.

use base64::Engine;

/// User and password in an `auth`; `None` if that is not what it is. Docker once padded passwords
/// with zeros.
#[must_use]
pub fn decode(auth: &str) -> Option<(String, String)> {
    let engine = base64::engine::general_purpose::STANDARD;
    let text = String::from_utf8(engine.decode(auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    let password = password.trim_end_matches('\0');
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_are_what_stands_before_and_behind_the_first_colon() {
        let pair = |user: &str, password: &str| Some((user.into(), password.into()));
        assert_eq!(decode("dXNlcjpzZWNyZXQ="), pair("user", "secret"));
        assert_eq!(decode(" dTphOmI= \n"), pair("u", "a:b"));
        assert_eq!(decode("dTpwAAA="), pair("u", "p"));
        assert_eq!(decode("Og=="), pair("", ""));
        for bad in ["", "dXNlcg==", "dXNlcjpzZWNyZXQ", "/+", "gIA6"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}
