//! What a file says and may not say: its header, names, unfinished work, lint exceptions, `unsafe`.

use syn::visit::{self, Visit};

use crate::source::{Source, Token};

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 9] = [
    "utils", "util", "helpers", "helper", "common", "types", "misc", "manager", "core",
];

/// Files outside `src/sys/` that run after clone and cannot do without `unsafe`.
const UNSAFE_FILES: [&str; 0] = [];

/// Every file says what it is before anything else.
pub(crate) fn header(source: &Source) -> Option<String> {
    let first = source.text.lines().next().unwrap_or_default();
    (!first.starts_with("//! ")).then(|| {
        format!(
            "{}: open the file with `//!`: what it is, what it is not, its states",
            source.path
        )
    })
}

/// A folder is a noun and a file a verb or a noun: some words are neither.
pub(crate) fn names(source: &Source) -> Vec<String> {
    let files = source
        .path
        .trim_end_matches(".rs")
        .split('/')
        .map(str::to_owned);
    let mut inline = InlineModules(Vec::new());
    inline.visit_file(&source.tree);
    files
        .chain(inline.0)
        .filter(|name| EMPTY_NAMES.contains(&name.as_str()))
        .map(|name| {
            format!(
                "{}: `{name}` says nothing: name it after what it holds",
                source.path
            )
        })
        .collect()
}

/// Nothing is left for later in the code itself.
pub(crate) fn unfinished(source: &Source) -> Vec<String> {
    let is_macro = |triple: &&[Token]| {
        // `todo != x` is a comparison.
        matches!(triple[0].text.as_str(), "todo" | "unimplemented")
            && triple[1].text == "!"
            && triple[2].text != "="
    };
    let mut tokens = source.tokens.clone();
    tokens.push(Token {
        text: String::new(),
        line: 0,
    });
    let calls = tokens.windows(3).filter(is_macro);
    calls
        .map(|call| {
            let Token { text, line } = &call[0];
            format!(
                "{}:{line}: `{text}!`: write it, or leave the call out",
                source.path
            )
        })
        .collect()
}

/// A lint exception is `expect` with a reason, so that it falls when its cause does.
pub(crate) fn exceptions(source: &Source) -> Vec<String> {
    let mut attributes = Attributes(Vec::new());
    attributes.visit_file(&source.tree);
    attributes
        .0
        .into_iter()
        .map(|(line, what)| format!("{}:{line}: {what}", source.path))
        .collect()
}

/// `unsafe` is in `src/sys/`, and in the listed files that run after clone.
pub(crate) fn unsafe_code(source: &Source) -> Vec<String> {
    if source.path.starts_with("src/sys/") || UNSAFE_FILES.contains(&source.path.as_str()) {
        return Vec::new();
    }
    let words = source.tokens.iter().filter(|token| token.text == "unsafe");
    words
        .map(|word| {
            format!(
                "{}:{}: `unsafe` outside src/sys/: put a safe wrapper there (what must run after \
                 clone is listed in tests/tidy/words.rs)",
                source.path, word.line
            )
        })
        .collect()
}

struct InlineModules(Vec<String>);

impl<'ast> Visit<'ast> for InlineModules {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.content.is_some() {
            self.0.push(item.ident.to_string());
        }
        visit::visit_item_mod(self, item);
    }
}

struct Attributes(Vec<(usize, &'static str)>);

impl<'ast> Visit<'ast> for Attributes {
    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let syn::Meta::List(list) = &attribute.meta else {
            return;
        };
        let line = attribute.pound_token.span.start().line;
        let tokens = list.tokens.to_string();
        let names = |word: &str| {
            list.path.is_ident(word)
                || (list.path.is_ident("cfg_attr") && tokens.contains(&format!("{word} (")))
        };
        if names("allow") {
            self.0.push((
                line,
                "`allow`: use `#[expect(lint, reason = \"…\")]`, which ends itself",
            ));
        }
        if names("expect") && !tokens.contains("reason =") {
            self.0
                .push((line, "`expect` without a reason: add `reason = \"…\"`"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str, text: &str) -> Source {
        Source::parse(path, text).expect("valid Rust")
    }

    #[test]
    fn a_file_without_a_header_is_reported() {
        assert!(header(&parse("src/a.rs", "//! What it is.\n")).is_none());
        assert!(header(&parse("src/a.rs", "")).is_some());
        assert!(header(&parse("src/a.rs", "// A comment.\nfn a() {}\n")).is_some());
        assert!(header(&parse("src/a.rs", "//!\n//! Late.\n")).is_some());
    }

    #[test]
    fn empty_names_are_reported_as_files_folders_and_inline_modules() {
        assert_eq!(names(&parse("src/utils.rs", "")).len(), 1);
        assert_eq!(names(&parse("src/common/mod.rs", "")).len(), 1);
        assert_eq!(
            names(&parse("src/a.rs", "mod helpers { mod types {} }")).len(),
            2
        );
        assert!(names(&parse("src/commonly.rs", "mod tests {}")).is_empty());
    }

    #[test]
    fn unfinished_work_is_reported_and_the_status_code_is_not() {
        assert_eq!(
            unfinished(&parse("src/a.rs", "fn a() { todo!() }")).len(),
            1
        );
        assert_eq!(
            unfinished(&parse("src/a.rs", "fn a() { m!(unimplemented!()) }")).len(),
            1
        );
        let text = "fn a() { Status::unimplemented(\"Attach\"); let todo = 1; if todo != 1 {} }";
        assert_eq!(unfinished(&parse("src/a.rs", text)), Vec::<String>::new());
    }

    #[test]
    fn lint_exceptions_need_a_reason() {
        let with = "#[expect(dead_code, reason = \"read by tests\")]\nfn a() {}";
        assert!(exceptions(&parse("src/a.rs", with)).is_empty());
        assert_eq!(
            exceptions(&parse("src/a.rs", "#[expect(dead_code)]\nfn a() {}")).len(),
            1
        );
        assert_eq!(
            exceptions(&parse("src/a.rs", "#![allow(dead_code)]\n")).len(),
            1
        );
        let nested = "#[cfg_attr(test, expect(dead_code))]\nfn a() {}";
        assert_eq!(exceptions(&parse("src/a.rs", nested)).len(), 1);
    }

    #[test]
    fn unsafe_is_reported_outside_its_place() {
        let text = "fn a() { unsafe { b() } }";
        assert!(unsafe_code(&parse("src/sys/clone.rs", text)).is_empty());
        assert_eq!(unsafe_code(&parse("src/cri/node.rs", text)).len(), 1);
        assert_eq!(
            unsafe_code(&parse("tests/e2e/main.rs", "m!(unsafe { b() });")).len(),
            1
        );
        assert!(unsafe_code(&parse("src/a.rs", "//! unsafe\n// unsafe\n")).is_empty());
    }
}
