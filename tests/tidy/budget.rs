//! Size budgets: lines of a file, lines of a function, columns of a line.

use syn::visit::{self, Visit};

use crate::source::{Source, is_code};

/// Code lines of a file; the lines of its test module have a budget of the same size.
const FILE_LINES: usize = 500;
/// Code lines of a function's body.
const FUNCTION_LINES: usize = 70;
/// Characters of a line.
const COLUMNS: usize = 100;

/// Files and lines over their budgets.
pub(crate) fn lines(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    let path = &source.path;
    let (code, test) = source.code_lines();
    if code > FILE_LINES {
        problems.push(format!(
            "{path}: {code} code lines, the budget is {FILE_LINES}: split it by noun or by verb"
        ));
    }
    if test > FILE_LINES {
        problems.push(format!(
            "{path}: {test} code lines of tests, the budget is {FILE_LINES}: move them to files"
        ));
    }
    for (index, line) in source.text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS {
            let number = index + 1;
            problems.push(format!(
                "{path}:{number}: {columns} columns, the budget is {COLUMNS}: break the line"
            ));
        }
    }
    problems
}

/// Functions over their budget. `#[expect(clippy::too_many_lines, …)]` excuses one.
pub(crate) fn functions(source: &Source) -> Vec<String> {
    let mut functions = Functions {
        lines: source.text.lines().collect(),
        path: &source.path,
        problems: vec![],
    };
    functions.visit_file(&source.tree);
    functions.problems
}

/// The spread of file sizes, for the eye: `tidy` prints it.
pub(crate) fn summary(sources: &[Source]) -> String {
    let crate_sources = sources.iter().filter(|s| s.path.starts_with("src/"));
    let mut sizes: Vec<_> = crate_sources.map(|s| (s.code_lines().0, &s.path)).collect();
    sizes.sort();
    let at = |quantile: usize| {
        sizes
            .get(sizes.len() * quantile / 100)
            .map_or(0, |size| size.0)
    };
    let largest = sizes
        .last()
        .map_or("none".into(), |(size, path)| format!("{size} ({path})"));
    let ours = sources.iter().filter(|s| s.path.starts_with("src/"));
    let exceptions: usize = ours.map(|s| s.text.matches("[expect(").count()).sum();
    format!(
        "src/: {} files, code lines: median {}, p90 {}, largest {largest}; {exceptions} exceptions",
        sizes.len(),
        at(50),
        at(90),
    )
}

struct Functions<'a> {
    lines: Vec<&'a str>,
    path: &'a str,
    problems: Vec<String>,
}

impl Functions<'_> {
    fn check(&mut self, attributes: &[syn::Attribute], name: &syn::Ident, block: &syn::Block) {
        let excused = attributes.iter().any(|attribute| {
            attribute.path().is_ident("expect")
                && matches!(&attribute.meta, syn::Meta::List(list)
                    if list.tokens.to_string().contains("too_many_lines"))
        });
        let open = block.brace_token.span.open().start().line;
        let close = block.brace_token.span.close().end().line;
        let body = self.lines.get(open..close.saturating_sub(1)).unwrap_or(&[]);
        let code = body.iter().filter(|line| is_code(line)).count();
        if code > FUNCTION_LINES && !excused {
            self.problems.push(format!(
                "{}:{open}: `{name}` has {code} code lines, the budget is {FUNCTION_LINES}: \
                 name its steps as functions",
                self.path
            ));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check(&item.attrs, &item.sig.ident, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check(&item.attrs, &item.sig.ident, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.check(&item.attrs, &item.sig.ident, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse("src/a.rs", text).expect("valid Rust")
    }

    #[test]
    fn a_file_over_its_budget_is_reported_and_comments_are_free() {
        let comments = "// free\n\n".repeat(FILE_LINES);
        assert!(
            lines(&parse(
                &(comments + &"const _: () = ();\n".repeat(FILE_LINES))
            ))
            .is_empty()
        );
        let problems = lines(&parse(&"const _: () = ();\n".repeat(FILE_LINES + 1)));
        assert!(problems[0].contains("501 code lines"), "{problems:?}");
    }

    #[test]
    fn a_test_module_has_a_budget_of_its_own() {
        let body = "const _: () = ();\n".repeat(FILE_LINES);
        let problems = lines(&parse(&format!("#[cfg(test)]\nmod tests {{\n{body}}}\n")));
        assert!(problems[0].contains("lines of tests"), "{problems:?}");
    }

    #[test]
    fn a_line_over_its_budget_is_reported_by_characters_not_bytes() {
        assert!(lines(&parse(&format!("// {}", "é".repeat(97)))).is_empty());
        assert_eq!(lines(&parse(&format!("// {}", "é".repeat(98)))).len(), 1);
    }

    #[test]
    fn a_function_over_its_budget_is_reported_unless_excused() {
        let body = "    let _ = 1;\n".repeat(FUNCTION_LINES + 1);
        let long = format!("fn long() {{\n{body}}}\n");
        assert!(functions(&parse(&long))[0].contains("`long` has 71"));
        let method = format!("struct S;\nimpl S {{\n{long}}}\n");
        assert_eq!(functions(&parse(&method)).len(), 1);
        let excuse = "#[expect(clippy::too_many_lines, reason = \"a table\")]\n";
        assert!(functions(&parse(&format!("{excuse}{long}"))).is_empty());
    }
}
