//! Which tests a source file has and what the comments above them say, line by line.
//!
//! rustfmt has made the files uniform, so lines are enough once literals are blanked (`literals.rs`): an attribute, a
//! comment, `fn` and `mod` each begin one.

use std::path::{Component, Path};

use super::ids::{Known, Named};
use super::literals;

/// What is in a source file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Path of each test (`lb_agent::compile::tests::name`) and the ids above it.
    pub(super) tests: Vec<(String, Vec<String>)>,
    /// Line and word of ids that there are not, in comments anywhere.
    pub(super) unknown: Vec<(usize, String)>,
    /// Line of the attribute that is still open at the end of the file: tests behind it were not seen.
    pub(super) unclosed: Option<usize>,
}

/// Reads a Rust file. `module` is the path of its top ([`module_of`]).
pub(super) fn rust(text: &str, module: &str, known: &Known) -> Found {
    let mut scanner = Scanner { known, blocks: Vec::new(), head: Head::default(), found: Found::default() };
    for (number, line) in (1..).zip(literals::blanked(text).lines()) {
        scanner.line(number, line, module);
    }
    if scanner.head.open > 0 {
        scanner.found.unclosed = Some(scanner.head.opened_at);
    }
    scanner.found
}

/// Reads a scenario: its leading comment names its rules. `name` is the file's.
pub(super) fn scenario(text: &str, name: &str, known: &Known) -> Found {
    let comment = |line: &str| line.trim_start().strip_prefix('#').map(str::to_owned);
    let leading: Vec<String> = text.lines().map_while(comment).collect();
    let mut found = Found::default();
    let named = known.named(&leading.join(" "));
    found.unknown.extend(named.unknown.into_iter().map(|word| (1, word)));
    for (number, line) in (1..).zip(text.lines()).skip(leading.len()) {
        if let Some((_, comment)) = line.split_once('#') {
            let named = known.named(comment);
            found.unknown.extend(named.unknown.into_iter().map(|word| (number, word)));
        }
    }
    if !named.ids.is_empty() {
        found.tests.push((name.to_owned(), named.ids.into_iter().collect()));
    }
    found
}

/// Path of the module in the file `path`, counted from the workspace: `lb_agent::compile::tests` of
/// `lb-agent/src/compile/tests.rs`, `sockets::refusal` of `tests/tests/sockets/refusal.rs`.
pub(super) fn module_of(path: &Path) -> String {
    let path = path.with_extension("");
    let mut words: Vec<&str> = path
        .components()
        .filter_map(|part| if let Component::Normal(part) = part { part.to_str() } else { None })
        .collect();
    let package = words.remove(0);
    let crate_name = if package == "tests" { "lb_tests".to_owned() } else { package.replace('-', "_") };
    if matches!(words.last(), Some(&("mod" | "lib" | "main"))) {
        words.pop();
    }
    match words.as_slice() {
        // Each of these files is a crate.
        ["src", "bin", rest @ ..] | ["tests" | "benches", rest @ ..] => rest.join("::").replace('-', "_"),
        ["src", rest @ ..] => {
            let mut all = vec![crate_name.as_str()];
            all.extend(rest);
            all.join("::")
        }
        _ => words.join("::"),
    }
}

/// What stands between the last item and the next.
#[derive(Debug, Default)]
struct Head {
    named: String,
    first_line: usize,
    is_test: bool,
    /// Brackets of an attribute that are still open, and the line where it begins.
    open: usize,
    opened_at: usize,
}

/// A block that matters to what is inside.
#[derive(Debug)]
struct Block {
    indent: usize,
    /// None: `proptest!`, whose functions are tests.
    module: Option<String>,
}

struct Scanner<'a> {
    known: &'a Known,
    blocks: Vec<Block>,
    head: Head,
    found: Found,
}

impl Scanner<'_> {
    fn line(&mut self, number: usize, line: &str, module: &str) {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        if self.head.open > 0 {
            self.head.open = brackets(code, self.head.open);
        } else if let Some(comment) = code.strip_prefix("//") {
            self.comment(number, comment);
        } else if let Some(attribute) = code.strip_prefix("#[") {
            self.head.is_test |= is_test(attribute);
            self.head.open = brackets(attribute, 1);
            self.head.opened_at = number;
        } else {
            self.item(number, code, module);
            self.block(code, indent);
        }
    }

    fn comment(&mut self, number: usize, comment: &str) {
        if comment.starts_with('!') {
            self.look(number, comment);
            return;
        }
        if self.head.named.is_empty() {
            self.head.first_line = number;
        }
        self.head.named.push(' ');
        self.head.named.push_str(comment.trim_start_matches('/'));
    }

    /// A line of code ends the head: as that of the test that begins here, or of nothing.
    fn item(&mut self, number: usize, code: &str, module: &str) {
        let head = std::mem::take(&mut self.head);
        let named = self.look(head.first_line, &head.named);
        if let Some((_, comment)) = code.split_once(" // ") {
            self.look(number, comment);
        }
        let is_test = head.is_test || self.blocks.last().is_some_and(|block| block.module.is_none());
        if let Some(name) = function(code).filter(|_| is_test) {
            let inside = self.blocks.iter().filter_map(|block| block.module.as_deref());
            let path: Vec<&str> = [module].into_iter().chain(inside).chain([name]).collect();
            self.found.tests.push((path.join("::"), named.ids.into_iter().collect()));
        }
    }

    fn block(&mut self, code: &str, indent: usize) {
        if code.starts_with('}') && self.blocks.last().is_some_and(|block| block.indent == indent) {
            self.blocks.pop();
        } else if code.starts_with("proptest! {") || code.starts_with("proptest::proptest! {") {
            self.blocks.push(Block { indent, module: None });
        } else if let Some(name) = after(code, "mod").and_then(|rest| rest.strip_suffix(" {")) {
            self.blocks.push(Block { indent, module: Some(name.to_owned()) });
        }
    }

    /// Ids in a comment; those that there are not are kept with their line.
    fn look(&mut self, number: usize, comment: &str) -> Named {
        let named = self.known.named(comment);
        self.found.unknown.extend(named.unknown.iter().map(|word| (number, word.clone())));
        named
    }
}

/// How many brackets are open after `code`, of `open` before. A comment counts for nothing.
fn brackets(code: &str, open: usize) -> usize {
    let code = code.split("//").next().unwrap_or_default();
    code.chars().fold(open, |open, c| match c {
        '[' => open + 1,
        ']' => open.saturating_sub(1),
        _ => open,
    })
}

/// `test]`, `rstest]`, `tokio::test(..)]`
fn is_test(attribute: &str) -> bool {
    let path = attribute.split(['(', ']', ' ']).next().unwrap_or_default();
    matches!(path.rsplit("::").next(), Some("test" | "rstest"))
}

/// The name of the function that begins in this line.
fn function(code: &str) -> Option<&str> {
    after(code, "fn").and_then(|rest| rest.split(['(', '<']).next())
}

/// What follows the keyword of an item, behind its visibility and qualifiers.
fn after<'a>(code: &'a str, keyword: &str) -> Option<&'a str> {
    let mut rest = code;
    loop {
        let (word, next) = rest.split_once(' ')?;
        if word == keyword {
            return Some(next);
        }
        if !(word.starts_with("pub") || matches!(word, "async" | "const" | "unsafe")) {
            return None;
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an area that there is not: this file is looked through as well.
    fn known() -> Known {
        Known::new((1..10).map(|number| format!("QQ-{number}")))
    }

    /// Names of the tests in `lines` and their ids, in one string each.
    fn tests(lines: &[&str]) -> Vec<String> {
        let found = rust(&lines.join("\n"), "top", &known());
        let with_ids = found.tests.into_iter();
        with_ids.map(|(name, ids)| format!("{name} {}", ids.join(" ")).trim().to_owned()).collect()
    }

    #[test]
    fn comments_right_above_a_test_name_its_rules() {
        let lines =
            ["/// QQ-1: why,", "/// and QQ-3.", "#[test]", "fn one() {", "}", "", "// QQ-2.", "#[test]"];
        assert_eq!(
            tests(&[&lines[..], &["pub(crate) async fn two() {}"]].concat()),
            ["top::one QQ-1 QQ-3", "top::two QQ-2"]
        );
    }

    #[test]
    fn a_comment_between_attributes_counts_and_the_name_of_a_case_does_not() {
        let lines = [
            "#[rstest]",
            "#[case::ep(\"QQ-4 ]\")]",
            "// QQ-5.",
            "#[case::two(",
            "    \"QQ-6\",",
            ")]",
            "fn table(#[case] given: &str) {",
        ];
        assert_eq!(tests(&lines), ["top::table QQ-5"]);
    }

    /// As in `tests/tests/fuzz.rs`: everything below such a case went unseen.
    #[test]
    fn a_case_with_a_raw_string_of_several_lines_ends_with_its_bracket() {
        let lines = [
            "#[rstest]",
            "#[case::raw(",
            "    &[r#\"{\"ports\":[],",
            "        // QQ-6 [ \"endpoints\":[]}\"#],",
            "    b'[', '\\'', \"a",
            "        [\", // [",
            ")]",
            "fn first<'a>(#[case] given: &[&'a str]) {",
            "}",
            "/// QQ-1.",
            "#[test]",
            "fn second() {",
        ];
        assert_eq!(tests(&lines), ["top::first", "top::second QQ-1"]);
        assert_eq!(rust(&lines.join("\n"), "top", &known()).unclosed, None);
    }

    #[test]
    fn a_bracket_that_stays_open_is_an_error_with_its_line() {
        let text =
            "#[test]\nfn one() {}\n#[case(\n    &[1],\n)\nfn two() {}\n/// QQ-1.\n#[test]\nfn three() {}\n";
        assert_eq!(rust(text, "top", &known()).unclosed, Some(3));
    }

    #[test]
    fn other_comments_name_nothing() {
        let lines = [
            "//! QQ-1.",
            "/// QQ-2.",
            "const A: u8 = 1;",
            "/// QQ-3.",
            "",
            "#[test]",
            "fn bare() { // QQ-4",
            "}",
            "/// QQ-5.",
            "fn helper() {}",
        ];
        assert_eq!(tests(&lines), ["top::bare"]);
    }

    #[test]
    fn functions_inside_proptest_are_tests_and_modules_are_part_of_the_path() {
        let lines = [
            "mod inner {",
            "    proptest! {",
            "        /// QQ-1 to QQ-3.",
            "        fn property(a in 0..3) {",
            "        }",
            "    }",
            "    fn helper() {}",
            "}",
            "#[tokio::test]",
            "fn outer() {",
        ];
        assert_eq!(tests(&lines), ["top::inner::property QQ-1 QQ-2 QQ-3", "top::outer"]);
    }

    #[test]
    fn unknown_ids_are_found_in_every_comment_with_their_line() {
        let text = "//! QQ-10.\nfn a() {\n    // QQ-11\n    let b = 1; // QQ-12\n    let c = \"QQ-13\";\n}\n";
        let unknown = rust(text, "top", &known()).unknown;
        let expected = [(1, "QQ-10"), (3, "QQ-11"), (4, "QQ-12")].map(|(line, id)| (line, id.to_owned()));
        assert_eq!(unknown, expected);
    }

    #[test]
    fn only_the_leading_comment_of_a_scenario_names_its_rules() {
        let found = scenario("# QQ-1,\n# QQ-2.\nsteps:\n# QQ-3 QQ-10\n", "a.yaml", &known());
        assert_eq!(found.tests, [("a.yaml".to_owned(), vec!["QQ-1".to_owned(), "QQ-2".to_owned()])]);
        assert_eq!(found.unknown, [(4, "QQ-10".to_owned())]);
    }

    #[test]
    fn a_file_is_a_module_of_its_crate() {
        for (path, module) in [
            ("lb-agent/src/compile/tests.rs", "lb_agent::compile::tests"),
            ("lb-agent/src/compile/mod.rs", "lb_agent::compile"),
            ("lb-common/src/lib.rs", "lb_common"),
            ("tests/src/netns.rs", "lb_tests::netns"),
            ("tests/src/bin/vm-init.rs", "vm_init"),
            ("tests/tests/cli.rs", "cli"),
            ("tests/tests/sockets/main.rs", "sockets"),
            ("tests/tests/sockets/refusal.rs", "sockets::refusal"),
        ] {
            assert_eq!(module_of(Path::new(path)), module);
        }
    }
}
