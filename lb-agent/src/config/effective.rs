//! `--print-config`: what is in force, as a text that `--config` takes; `/configz`, the same as JSON.

use serde_json::{Map, Value, json};

use super::{
    Command, Parsed,
    file::fields::{FIELDS, Field, Kind, Meaning, Mode, VERBOSITY},
    log_level,
    parse::Origin,
};

impl Parsed {
    /// Every flag of `run` as a comment with where it comes from, then the same as a `KubeProxyConfiguration`, as far
    /// as that has fields.
    pub fn effective(&self) -> String {
        let values = self.values();
        let mut text = format!("# lb-agent {}: what is in force\n", env!("CARGO_PKG_VERSION"));
        let width = values.iter().map(|(flag, value, _)| flag.len() + value.len()).max().unwrap_or(0).min(60);
        for (flag, value, origin) in &values {
            let pad = width.saturating_sub(flag.len() + value.len());
            line(&mut text, format_args!("#   --{flag}={value}{:pad$}  {}", "", origin.name()));
        }
        if let Command::Run(run) = &self.cli.command
            && let Ok(options) = run.packets.options()
        {
            line(&mut text, format_args!("# {options}"));
        }
        for ignored in &self.ignored {
            line(&mut text, format_args!("# not used: {}: {}: {}", ignored.path, ignored.value, ignored.why));
        }
        if let Some(assumption) = self.assumption() {
            line(&mut text, format_args!("# {assumption}"));
        }
        text.push_str(&document(&values));
        text
    }

    /// The same as JSON, under the name that kube-proxy has at `/configz`, and all flags beside it (HZ-10).
    pub fn configz(&self) -> String {
        let values = self.values();
        // What `--config` reads is YAML, and this is what was printed for it.
        let document: Value = serde_saphyr::from_str(&document(&values)).unwrap_or_default();
        let flags: Map<String, Value> =
            values.into_iter().map(|(flag, value, _)| (flag, value.into())).collect();
        json!({"kubeproxy.config.k8s.io": document, "lb-agent": flags}).to_string()
    }
}

fn line(text: &mut String, content: core::fmt::Arguments<'_>) {
    text.push_str(&content.to_string());
    text.push('\n');
}

/// A `KubeProxyConfiguration` with the fields of flags that have one. Of the sections of modes the one without a mode is written.
fn document(values: &[(String, String, Origin)]) -> String {
    let mut text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n".to_owned();
    let mut section = "";
    let written = FIELDS.iter().filter(|field| match field.meaning {
        Meaning::Flag(_) => true,
        Meaning::FlagIn(_, modes) => modes.contains(&Mode::Unset),
        Meaning::Mode | Meaning::Nothing(_) => false,
    });
    for field in written {
        let Some((_, value, _)) = values.iter().find(|(flag, ..)| Some(flag.as_str()) == field.flag()) else {
            continue;
        };
        if value.is_empty() {
            if field.path.ends_with("BindAddress") {
                let flag = field.flag().unwrap_or_default();
                line(
                    &mut text,
                    format_args!("# {}: a file cannot say \"nowhere\": give --{flag}= beside it", field.path),
                );
            }
            continue;
        }
        if field.path == VERBOSITY && log_level::verbosity_of(value).is_none() {
            line(&mut text, format_args!("# {VERBOSITY}: no number means this: give --log-level beside it"));
            continue;
        }
        let (above, name) = field.path.rsplit_once('.').unwrap_or(("", field.path));
        if above != section && !above.is_empty() {
            line(&mut text, format_args!("{above}:"));
        }
        section = above;
        let indent = if above.is_empty() { "" } else { "  " };
        line(&mut text, format_args!("{indent}{name}: {}", written_as(field, value)));
    }
    text
}

fn written_as(field: &Field, value: &str) -> String {
    let quoted = |text: &str| Value::from(text).to_string();
    match field.kind {
        Kind::Number if field.path == VERBOSITY => {
            log_level::verbosity_of(value).unwrap_or_default().to_string()
        }
        Kind::Bool | Kind::Number => value.to_owned(),
        Kind::Texts => format!("[{}]", value.split(',').map(quoted).collect::<Vec<_>>().join(", ")),
        Kind::Text | Kind::Duration | Kind::DurationOrZero | Kind::Map => quoted(value),
    }
}
