//! kube-proxy's own configuration file: `KubeProxyConfiguration`, `kubeproxy.config.k8s.io/v1alpha1`. Pure.
//!
//! ```text
//! tree.rs     text -> values with their places
//!     | fields.rs   every field: what it holds, which flag it is
//!     v
//! FileConfig  values of flags, and what is not used
//! ```
//!
//! A field that Go would take for absent (empty, zero, false where that is the default) says nothing, because `kubeadm`
//! and
//! `kube-proxy --write-config-to` write all of them.

pub(crate) mod fields;
#[cfg(test)]
mod tests;
mod tree;

use core::{fmt, net::IpAddr};

use super::{GoDuration, log_level};
use fields::{Field, Kind, Meaning, Mode, VERBOSITY};
use tree::{Node, Tree};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// Ports that kube-proxy adds to an address without one.
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// A place in the file, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Column.
    pub column: u64,
}

/// Why the file cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub reason: String,
}

impl Place {
    /// A fault of the field `path` here.
    pub fn fault(self, path: &str, reason: impl fmt::Display) -> Fault {
        Fault { place: self, reason: format!("{path}: {reason}") }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.place.line, self.place.column, self.reason)
    }
}

/// A value of a flag.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    /// Name of the flag, without dashes.
    pub flag: &'static str,
    /// As it would be written on the command line.
    pub text: String,
    /// Field that says so.
    pub path: String,
    /// Where.
    pub place: Place,
}

/// A field that is not used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ignored {
    /// Field.
    pub path: String,
    /// What it says, in one line.
    pub value: String,
    /// Why it is not used.
    pub why: &'static str,
}

/// What a file says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileConfig {
    /// Values of flags, each flag once.
    pub given: Vec<Given>,
    /// What is not used.
    pub ignored: Vec<Ignored>,
    /// `mode` is not said, and a default was chosen as if it were `iptables` (NP-3).
    pub assumes_mode: bool,
}

/// Reads the text of a file.
///
/// # Errors
/// The first thing that is wrong: the text, the kind of the object, a value of another type, a mode that there is not.
/// Values of flags are checked by whoever knows the flags.
pub fn read(text: &str) -> Result<FileConfig, Fault> {
    let document = tree::read(text)?;
    let Tree::Map(entries) = &document.tree else {
        let reason = format!("expected {KIND} of {API_VERSION}, found {}", document.tree.shown());
        return Err(Fault { place: document.place, reason });
    };
    check_kind(entries, document.place)?;
    let mut reader = Reader { mode: mode(entries)?, config: FileConfig::default() };
    for (key, node) in entries.iter().filter(|(key, _)| !["apiVersion", "kind"].contains(&key.as_str())) {
        reader.take(key, node)?;
    }
    reader.defaults_of_mode(entries, document.place);
    Ok(reader.config)
}

fn find<'n>(entries: &'n [(String, Node)], key: &str) -> Option<&'n Node> {
    entries.iter().find(|(name, _)| name == key).map(|(_, node)| node)
}

/// Other versions and kinds are refused by name.
fn check_kind(entries: &[(String, Node)], place: Place) -> Result<(), Fault> {
    for (key, wanted) in [("kind", KIND), ("apiVersion", API_VERSION)] {
        let Some(node) = find(entries, key) else {
            return Err(place.fault(key, format_args!("it is missing: expected {wanted}")));
        };
        match &node.tree {
            Tree::Text(text) if text == wanted => {}
            Tree::Text(text) => {
                let reason = format_args!("{text} is not read here: write it as {KIND} of {API_VERSION}");
                return Err(node.place.fault(key, reason));
            }
            other => {
                return Err(node
                    .place
                    .fault(key, format_args!("expected {wanted}, found {}", other.shown())));
            }
        }
    }
    Ok(())
}

fn mode(entries: &[(String, Node)]) -> Result<Mode, Fault> {
    let Some(node) = find(entries, "mode") else { return Ok(Mode::Unset) };
    match &node.tree {
        Tree::Null => Ok(Mode::Unset),
        Tree::Text(text) => Mode::named(text).ok_or_else(|| {
            node.place
                .fault("mode", format_args!("{text:?} is not known: expected iptables, ipvs or nftables"))
        }),
        other => Err(mismatch(node.place, "mode", Kind::Text, other)),
    }
}

fn mismatch(place: Place, path: &str, kind: Kind, found: &Tree) -> Fault {
    let expected = match kind {
        Kind::Text => "a text",
        Kind::Bool => "true or false",
        Kind::Number => "a whole number",
        Kind::Duration | Kind::DurationOrZero => "a duration such as 30s or 1m30s",
        Kind::Texts => "a list of texts",
        Kind::Map => "a map",
    };
    place.fault(path, format_args!("expected {expected}, found {}", found.shown()))
}

struct Reader {
    mode: Mode,
    config: FileConfig,
}

impl Reader {
    fn take(&mut self, path: &str, node: &Node) -> Result<(), Fault> {
        if let Some(field) = Field::at(path) {
            return self.field(field, node);
        }
        match &node.tree {
            Tree::Map(entries) if Field::has_below(path) => {
                entries.iter().try_for_each(|(key, below)| self.take(&format!("{path}.{key}"), below))
            }
            Tree::Null if Field::has_below(path) => Ok(()),
            other if Field::has_below(path) => Err(mismatch(node.place, path, Kind::Map, other)),
            _ => {
                self.ignore(path, node, "it is not a field of KubeProxyConfiguration v1alpha1");
                Ok(())
            }
        }
    }

    fn ignore(&mut self, path: &str, node: &Node, why: &'static str) {
        self.config.ignored.push(Ignored { path: path.to_owned(), value: node.tree.brief(), why });
    }

    fn field(&mut self, field: &Field, node: &Node) -> Result<(), Fault> {
        let Some(text) = text_of(field, node)? else { return Ok(()) };
        match field.meaning {
            Meaning::Mode => {}
            Meaning::Nothing(why) => self.ignore(field.path, node, why),
            Meaning::FlagIn(_, modes) if !modes.contains(&self.mode) => {
                if node.tree.is_zero() {
                    return Ok(());
                }
                self.ignore(field.path, node, "kube-proxy does not read it in this mode either");
            }
            Meaning::Flag(flag) | Meaning::FlagIn(flag, _) => match as_flag(field.path, text) {
                Ok(text) => self.give(flag, text, field.path, node.place),
                Err("") => {}
                Err(why) => self.ignore(field.path, node, why),
            },
        }
        Ok(())
    }

    fn give(&mut self, flag: &'static str, text: String, path: &str, place: Place) {
        self.config.given.push(Given { flag, text, path: path.to_owned(), place });
    }

    /// NP-3: without a list, kube-proxy's older modes serve NodePorts on all addresses. A kube-proxy on Linux that is
    /// told no mode, as by kubeadm's `mode: ""`, runs iptables.
    fn defaults_of_mode(&mut self, entries: &[(String, Node)], top: Place) {
        let is_older = self.mode != Mode::Nftables;
        if is_older && self.config.given.iter().all(|given| given.flag != "nodeport-addresses") {
            let place = find(entries, "mode").map_or(top, |node| node.place);
            self.give("nodeport-addresses", "all".to_owned(), "mode", place);
            self.config.assumes_mode = self.mode == Mode::Unset;
        }
    }
}

/// The value of a field as text; nothing if it is as good as absent.
fn text_of(field: &Field, node: &Node) -> Result<Option<String>, Fault> {
    let wrong = || mismatch(node.place, field.path, field.kind, &node.tree);
    let has_meaning = !matches!(field.meaning, Meaning::Nothing(_));
    let text = match (field.kind, &node.tree) {
        (_, Tree::Null) => return Ok(None),
        (Kind::Text, Tree::Text(text)) => text.clone(),
        (Kind::Bool, Tree::Bool(value)) => value.to_string(),
        (Kind::Number, Tree::Number(text)) if text.parse::<i64>().is_ok() => text.clone(),
        // `qps` is a float.
        (Kind::Number, Tree::Number(text)) if !has_meaning => text.clone(),
        (Kind::Duration | Kind::DurationOrZero, Tree::Text(text)) => {
            let duration: GoDuration = text.parse().ok().ok_or_else(wrong)?;
            if duration.0.is_zero() && field.kind == Kind::Duration {
                return Ok(None);
            }
            text.clone()
        }
        (Kind::Texts, Tree::List(items)) => {
            let texts = items.iter().map(|item| match &item.tree {
                Tree::Text(text) => Ok(text.as_str()),
                other => Err(mismatch(item.place, field.path, Kind::Text, other)),
            });
            texts.collect::<Result<Vec<_>, _>>()?.join(",")
        }
        // Durations and maps of `logging` come in several forms.
        (Kind::Map, tree) if !has_meaning => tree.brief(),
        _ => return Err(wrong()),
    };
    // Of flags, `false` and 0 are values; where a text is empty the default holds.
    let is_absent = if has_meaning { text.is_empty() } else { node.tree.is_zero() };
    Ok((!is_absent).then_some(text))
}

/// The value of a field in the form of its flag; an empty error if it says nothing, otherwise why it is not used.
fn as_flag(path: &str, text: String) -> Result<String, &'static str> {
    let with_port = |port: u16| match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(addr)) => format!("{addr}:{port}"),
        Ok(IpAddr::V6(addr)) => format!("[{addr}]:{port}"),
        Err(_) => text.clone(),
    };
    match path {
        "healthzBindAddress" => Ok(with_port(HEALTHZ_PORT)),
        "metricsBindAddress" => Ok(with_port(METRICS_PORT)),
        "bindAddress" => match text.parse::<IpAddr>() {
            // kube-proxy finds out its addresses then, as this agent does.
            Ok(addr) if addr.is_unspecified() => Err(""),
            Ok(addr) if addr.is_loopback() => Err("a loopback address is no address of the node for others"),
            _ => Ok(text),
        },
        VERBOSITY => match text.parse() {
            Ok(verbosity) => Ok(log_level::of_verbosity(verbosity).to_owned()),
            Err(_) => Err("it is no verbosity: 0 or more is expected"),
        },
        _ => Ok(text),
    }
}
