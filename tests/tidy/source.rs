//! One source file, parsed: its tokens, the part of them that only tests compile, and its place in
//! the module tree.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// A parsed file.
pub(crate) struct Source {
    /// Relative to the repository, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) tree: syn::File,
    /// Identifiers and punctuation in order, without delimiters. Those of macro bodies and
    /// attributes are included, which a syntax tree does not offer.
    pub(crate) tokens: Vec<Token>,
    /// Lines that only tests compile.
    test_lines: Vec<RangeInclusive<usize>>,
}

/// An identifier or a punctuation character.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

impl Source {
    /// Parses `text`. The error is one line that names `path`.
    pub(crate) fn parse(path: &str, text: &str) -> Result<Self, String> {
        let tree = syn::parse_file(text).map_err(|e| format!("{path}: does not parse: {e}"))?;
        let stream =
            TokenStream::from_str(text).map_err(|e| format!("{path}: does not parse: {e}"))?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let mut tests = TestLines(Vec::new());
        tests.visit_file(&tree);
        if path.ends_with("/tests.rs") || path.ends_with("_tests.rs") {
            tests.0.push(1..=usize::MAX);
        }
        Ok(Self {
            path: path.into(),
            text: text.into(),
            tree,
            tokens,
            test_lines: tests.0,
        })
    }

    /// Whether only tests compile this line (counted from 1).
    pub(crate) fn is_test_line(&self, line: usize) -> bool {
        self.test_lines.iter().any(|range| range.contains(&line))
    }

    /// The module path below the crate: `src/cri/sandbox/run.rs` is `["cri", "sandbox", "run"]`,
    /// and `src/cri/mod.rs` is `["cri"]`. `None` for what is not part of the crate.
    pub(crate) fn module(&self) -> Option<Vec<&str>> {
        let inner = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        let mut parts: Vec<&str> = inner.split('/').collect();
        if matches!(parts.last(), Some(&("mod" | "lib"))) {
            parts.pop();
        }
        Some(parts)
    }

    /// Lines with code on them, as `(outside tests, in tests)`. Blank lines and comments are free.
    pub(crate) fn code_lines(&self) -> (usize, usize) {
        let mut counts = (0, 0);
        for (index, line) in self.text.lines().enumerate() {
            if !is_code(line) {
                continue;
            }
            if self.is_test_line(index + 1) {
                counts.1 += 1;
            } else {
                counts.0 += 1;
            }
        }
        counts
    }
}

/// Whether a line carries code rather than nothing or a comment.
pub(crate) fn is_code(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with("//")
}

/// Reads every `.rs` file below `path`, which may be a file; what is absent is skipped.
pub(crate) fn collect(
    root: &Path,
    path: &Path,
    sources: &mut Vec<Source>,
    problems: &mut Vec<String>,
) {
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("a readable source directory");
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            collect(root, &path, sources, problems);
        }
    } else if path.extension().is_some_and(|e| e == "rs") && path.is_file() {
        let text = fs::read_to_string(path).expect("a readable source file");
        let relative = path.strip_prefix(root).expect("a path below the root");
        match Source::parse(&relative.to_string_lossy(), &text) {
            Ok(source) => sources.push(source),
            Err(problem) => problems.push(problem),
        }
    }
}

fn flatten(stream: TokenStream, out: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => flatten(group.stream(), out),
            TokenTree::Ident(ident) => out.push(Token {
                text: ident.to_string(),
                line,
            }),
            TokenTree::Punct(punct) => out.push(Token {
                text: punct.to_string(),
                line,
            }),
            // A literal keeps its place, so that what it parts does not look adjacent.
            TokenTree::Literal(_) => out.push(Token {
                text: String::new(),
                line,
            }),
        }
    }
}

/// Collects the lines of `#[cfg(test)]` modules and `#[test]` functions.
struct TestLines(Vec<RangeInclusive<usize>>);

impl<'ast> Visit<'ast> for TestLines {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        match &item.content {
            Some((brace, _)) if item.attrs.iter().any(is_cfg_test) => {
                let start = item.mod_token.span.start().line;
                self.0.push(start..=brace.span.close().end().line);
            }
            _ => visit::visit_item_mod(self, item),
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        let is_test = |a: &syn::Attribute| {
            a.path().segments.last().is_some_and(|s| s.ident == "test") || is_cfg_test(a)
        };
        if item.attrs.iter().any(is_test) {
            let start = item.sig.fn_token.span.start().line;
            self.0
                .push(start..=item.block.brace_token.span.close().end().line);
        }
    }
}

fn is_cfg_test(attribute: &syn::Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else {
        return false;
    };
    list.path.is_ident("cfg")
        && list
            .tokens
            .clone()
            .into_iter()
            .any(|token| token.to_string() == "test")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_in_test_modules_is_counted_apart() {
        let text = "//! Head.\n\nfn a() {}\n// no\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n";
        let source = Source::parse("src/a.rs", text).expect("valid");
        assert_eq!(source.code_lines(), (2, 3));
    }

    #[test]
    fn a_module_path_follows_the_file() {
        let module = |path: &str| {
            let source = Source::parse(path, "").expect("valid");
            source.module().map(|m| m.join("::"))
        };
        assert_eq!(
            module("src/cri/sandbox/run.rs").as_deref(),
            Some("cri::sandbox::run")
        );
        assert_eq!(module("src/cri/mod.rs").as_deref(), Some("cri"));
        assert_eq!(module("src/lib.rs").as_deref(), Some(""));
        assert_eq!(module("tests/tidy.rs"), None);
    }

    #[test]
    fn tokens_of_macro_bodies_are_seen() {
        let source = Source::parse("src/a.rs", "fn f() { m!(crate::sys::x); }").expect("valid");
        assert!(source.tokens.iter().any(|t| t.text == "sys"));
    }

    #[test]
    fn what_does_not_parse_is_named() {
        let problem = Source::parse("src/a.rs", "fn (").err().expect("an error");
        assert!(problem.starts_with("src/a.rs: does not parse"), "{problem}");
    }
}
