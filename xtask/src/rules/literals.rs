//! Source text without the content of its literals.
//!
//! A parser such as syn is no help: what counts here are comments, and it drops them.

/// `text` with blanks for what is in strings and characters, raw ones too. Lines, comments and quotes stay as they are.
pub(super) fn blanked(text: &str) -> String {
    let mut blanked = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let piece = piece(rest, blanked.chars().next_back().unwrap_or(' '));
        let (shown, hidden) = rest.split_at(piece.begin);
        blanked.push_str(shown);
        let (hidden, behind) = hidden.split_at(piece.content);
        blanked.extend(hidden.chars().map(|c| if c == '\n' { c } else { ' ' }));
        let (close, behind) = behind.split_at(piece.end);
        blanked.push_str(close);
        rest = behind;
    }
    blanked
}

/// Lengths in bytes: what is shown, what is hidden of a literal, and what closes it, so that it does not open another one.
struct Piece {
    begin: usize,
    content: usize,
    end: usize,
}

/// The piece at the beginning of `text`, which is not empty; `before` is the character before it.
fn piece(text: &str, before: char) -> Piece {
    let shown = |begin| Piece { begin, content: 0, end: 0 };
    // A literal that nothing closes ends with the text.
    let literal = |begin: usize, content: Option<usize>, end: usize| {
        let content = content.unwrap_or(text.len() - begin);
        Piece { begin, content, end: end.min(text.len() - begin - content) }
    };
    let is_in_word = before.is_alphanumeric() || before == '_';
    let mut chars = text.chars();
    match (chars.next(), chars.next(), chars.next()) {
        (Some('/'), Some('/'), _) => shown(text.find('\n').unwrap_or(text.len())),
        (Some('/'), Some('*'), _) => shown(block_comment(text)),
        (Some('r' | 'b' | 'c'), ..) if !is_in_word && raw_hashes(text).is_some() => {
            let hashes = raw_hashes(text).unwrap_or_default();
            let close = format!("\"{}", "#".repeat(hashes));
            let begin = text.find('"').map_or(text.len(), |quote| quote + 1);
            literal(begin, text[begin..].find(&close), close.len())
        }
        (Some('"'), ..) => literal(1, unescaped(&text[1..], '"'), 1),
        // A character, and not a lifetime.
        (Some('\''), Some('\\'), _) | (Some('\''), Some(_), Some('\'')) => {
            literal(1, unescaped(&text[1..], '\''), 1)
        }
        (first, ..) => shown(first.map_or(0, char::len_utf8)),
    }
}

/// Where `quote` stands in `text` without a backslash before it.
fn unescaped(text: &str, quote: char) -> Option<usize> {
    let mut is_escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let is_end = c == quote && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end.then_some(at)
    })
}

/// The hashes of the raw string (`r"`, `br#"`, `cr##"`) that begins with `text`.
fn raw_hashes(text: &str) -> Option<usize> {
    let behind = text.strip_prefix(['b', 'c']).unwrap_or(text).strip_prefix('r')?;
    let hashes = behind.len() - behind.trim_start_matches('#').len();
    behind[hashes..].starts_with('"').then_some(hashes)
}

/// The length of the comment that begins with `text`, comments in it included.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let mark = text.get(at..at + 2);
        match mark {
            Some("/*") => depth += 1,
            Some("*/") => depth -= 1,
            _ => {}
        }
        at += if matches!(mark, Some("/*" | "*/")) { 2 } else { c.len_utf8() };
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_literals_say_is_blank() {
        for (text, wanted) in [
            ("a[\"b[\"]", "a[\"  \"]"),
            (r#""a\"[" ["#, "\"    \" ["),
            (r#""a\\" ["#, "\"   \" ["),
            ("\"\" [", "\"\" ["),
            ("\"a\nb[\n\" [", "\" \n  \n\" ["),
            ("r\"a\\\" [", "r\"  \" ["),
            ("br##\"a\"#[\n\"## [", "br##\"    \n\"## ["),
            ("for\"a[\"r", "for\"  \"r"),
            ("r#type [", "r#type ["),
            ("'[' '\"' '\\'' b'[' 'ä' [", "' ' ' ' '  ' b' ' ' ' ["),
            ("<'a, 'static>['b']", "<'a, 'static>[' ']"),
            ("a // it's \"[\nb\"[\"", "a // it's \"[\nb\" \""),
            ("/* \" /* ' */ \" */ \"[\"", "/* \" /* ' */ \" */ \" \""),
            ("a \"[\n[", "a \" \n "),
        ] {
            assert_eq!(blanked(text), wanted, "{text}");
        }
    }
}
