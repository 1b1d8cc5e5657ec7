//! What SQL an operator may ask: one statement, and one that reads. This is the first of three
//! gates; the connection is opened read-only and told to refuse writes (`query_only`) as well.

/// Why a text is not let through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nothing to run.
    #[error("the SQL is empty")]
    Empty,
    /// Something after the first statement.
    #[error("one statement at a time: there is something after the first \";\"")]
    SeveralStatements,
    /// A statement that is no query.
    #[error("{0} is not allowed: only SELECT, WITH, VALUES, or EXPLAIN of one of them")]
    NotAQuery(String),
    /// A byte that ends the text for SQLite but not for this check.
    #[error("the SQL holds a NUL byte")]
    Nul,
}

/// Longest SQL text, in bytes.
pub const SQL_MAX: usize = 1_000_000;

/// Lets one reading statement through.
///
/// # Errors
/// When the text is anything else.
pub(super) fn one_query(sql: &str) -> Result<(), Refused> {
    if sql.contains('\0') {
        return Err(Refused::Nul);
    }
    let mut words = Vec::new();
    let mut rest = sql;
    let mut ended = false;
    while let Some((token, after)) = next_token(rest) {
        rest = after;
        match token {
            Token::Blank => {}
            Token::Semicolon if words.is_empty() => return Err(Refused::Empty),
            Token::Semicolon => ended = true,
            _ if ended => return Err(Refused::SeveralStatements),
            Token::Word(word) => words.push(word.to_ascii_uppercase()),
            Token::Other => words.push(String::new()),
        }
    }
    let mut words = words.iter().map(String::as_str);
    let first = words.next().ok_or(Refused::Empty)?;
    let verb = match first {
        "EXPLAIN" => match words.next() {
            // Some pragmas do their work while they are compiled, so even EXPLAIN would run them.
            Some("QUERY") => words.nth(1).unwrap_or_default(),
            other => other.unwrap_or_default(),
        },
        other => other,
    };
    match verb {
        "SELECT" | "WITH" | "VALUES" => Ok(()),
        "" => Err(Refused::NotAQuery("this text".into())),
        other => Err(Refused::NotAQuery(other.chars().take(32).collect())),
    }
}

enum Token<'a> {
    Blank,
    Semicolon,
    Word(&'a str),
    Other,
}

/// Splits the first token off, by SQLite's rules for quotes and comments.
fn next_token(text: &str) -> Option<(Token<'_>, &str)> {
    let first = text.chars().next()?;
    let (token, length) = match first {
        ';' => (Token::Semicolon, 1),
        // SQLite skips a byte order mark at the very beginning only; elsewhere it is an error.
        c if c.is_ascii_whitespace() => (Token::Blank, 1),
        '-' if text.starts_with("--") => {
            (Token::Blank, text.find('\n').map_or(text.len(), |n| n + 1))
        }
        '/' if text.starts_with("/*") => {
            let end = text[2..].find("*/").map_or(text.len(), |n| n + 4);
            (Token::Blank, end)
        }
        '\'' | '"' | '`' => (Token::Other, quoted(text, first)),
        '[' => (Token::Other, text.find(']').map_or(text.len(), |n| n + 1)),
        c if is_word(c) => {
            let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
            (Token::Word(&text[..end]), end)
        }
        other => (Token::Other, other.len_utf8()),
    };
    Some((token, &text[length..]))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// Length of a quoted token; a quote is written twice to stand for itself. One that is never closed
/// goes to the end of the text.
fn quoted(text: &str, quote: char) -> usize {
    let mut from = 1;
    while let Some(found) = text[from..].find(quote) {
        let after = from + found + 1;
        if !text[after..].starts_with(quote) {
            return after;
        }
        from = after + 1;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_pass() {
        for sql in [
            "SELECT 1",
            "  select * from v_pods ; ",
            "-- first\n/* ; */ SELECT ';' AS \"a;b\", [x;y], `z;` FROM t;\n-- the end",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "VALUES (1), (2)",
            "EXPLAIN SELECT 1",
            "explain query plan select 1",
            "SELECT 'it''s; fine'",
            "SELECT 1; ; ;",
        ] {
            assert_eq!(one_query(sql), Ok(()), "{sql}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let verb = |word: &str| Err(Refused::NotAQuery(word.into()));
        for (sql, refusal) in [
            ("", Err(Refused::Empty)),
            (" ; ", Err(Refused::Empty)),
            ("/* never closed; SELECT 1", Err(Refused::Empty)),
            ("SELECT 1; DROP TABLE jobs", Err(Refused::SeveralStatements)),
            (
                "SELECT ''';'; DELETE FROM x",
                Err(Refused::SeveralStatements),
            ),
            ("SELECT 1 --\n; SELECT 2", Err(Refused::SeveralStatements)),
            ("SELECT [a]; b]", Err(Refused::SeveralStatements)),
            ("SELECT 1\0; DROP TABLE jobs", Err(Refused::Nul)),
            ("DELETE FROM pods", verb("DELETE")),
            ("attach 'x' as y", verb("ATTACH")),
            ("PRAGMA query_only = 0", verb("PRAGMA")),
            ("EXPLAIN PRAGMA query_only = 0", verb("PRAGMA")),
            ("EXPLAIN QUERY PLAN PRAGMA x", verb("PRAGMA")),
            ("EXPLAIN", verb("this text")),
            ("'SELECT'", verb("this text")),
            ("(SELECT 1)", verb("this text")),
            ("BEGIN", verb("BEGIN")),
            ("VACUUM INTO '/x'", verb("VACUUM")),
        ] {
            assert_eq!(one_query(sql), refusal, "{sql}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_stumble(text: String) {
            let _ = one_query(&text);
        }

        #[test]
        fn whatever_is_quoted_cannot_end_the_statement(text in "[^']*") {
            let text = text.replace('\0', "");
            prop_assert_eq!(one_query(&format!("SELECT '{text}'")), Ok(()));
            prop_assert_eq!(
                one_query(&format!("SELECT '{text}'; DROP TABLE x")),
                Err(Refused::SeveralStatements)
            );
        }
    }
}
