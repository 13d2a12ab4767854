//! JSON as YAML, for people.

use std::fmt::Write as _;

use serde_json::Value;

/// `value` as YAML in blocks.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text
}

fn write(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (at, (name, value)) in fields.iter().enumerate() {
                // The first field of a list's item stands beside its dash.
                if at > 0 || !text.ends_with("- ") {
                    text.push_str(&" ".repeat(indent));
                }
                text.push_str(name);
                text.push(':');
                below(text, value, indent + 2);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&" ".repeat(indent));
                text.push_str("- ");
                match item {
                    Value::Object(_) => write(text, item, indent + 2),
                    // JSON is YAML.
                    _ => line(text, item),
                }
            }
        }
        _ => line(text, value),
    }
}

fn below(text: &mut String, value: &Value, indent: usize) {
    let has_lines = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if has_lines {
        text.push('\n');
        write(text, value, indent);
    } else {
        text.push(' ');
        line(text, value);
    }
}

fn line(text: &mut String, value: &Value) {
    // Writing to a string cannot fail.
    writeln!(text, "{value}").unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_and_lists_are_blocks() {
        let value = json!({"a": {"b": [1, {"c": "x", "d": []}]}, "e": {}});
        let text = yaml(&value);
        assert_eq!(text, "a:\n  b:\n    - 1\n    - c: \"x\"\n      d: []\ne: {}\n");
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read, value);
    }
}
