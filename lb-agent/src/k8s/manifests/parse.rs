//! The text of one file -> the objects that concern us. Pure.
//!
//! Typed values are read straight from the text, so that an error has the line and column of the value it is about. For
//! that each document is read twice: once for what it is, once for its content. A list whose items may be of any kind is
//! read a third time, for the kinds of its items.

use core::fmt;

use k8s_openapi::api::core::v1::{Node as ApiNode, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{MessageFormatter, Spanned, UserMessageFormatter};

use super::super::{Interest, Refused, namespace, node, select, service, slice};
use super::key::Key;
use crate::model::{Names, Node, Service, ServiceType, Slice};

/// An object of a manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Object {
    Service(Service),
    Slice(Slice),
    Node(Node),
}

/// A place in a file that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    /// From 1.
    pub(super) line: Option<u64>,
    /// From 1.
    pub(super) column: Option<u64>,
    pub(super) reason: String,
}

impl Fault {
    /// The same in a text with so many lines before.
    fn below(self, lines: u64) -> Self {
        Self { line: self.line.map(|line| line + lines), ..self }
    }
}

/// What a file says.
#[derive(Default, Debug)]
pub(super) struct Parsed {
    /// In the order of the file; of a broken file those of the documents that can be read.
    pub(super) objects: Vec<Object>,
    /// Documents that cannot be read, and objects of which nothing says which ones they are.
    pub(super) broken: Vec<Fault>,
    /// Objects that are well-formed and cannot be used, by the line where each begins; in JSON only the file is known.
    pub(super) refused: Vec<(Key, Fault)>,
}

impl Parsed {
    /// A file of which nothing can be read.
    pub(super) fn broken(reason: String) -> Self {
        let fault = Fault { line: None, column: None, reason };
        Self { broken: vec![fault], ..Self::default() }
    }
}

/// How a file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// Reads the objects of one file that are of interest.
pub(super) fn parse(bytes: &[u8], format: Format, interest: &Interest, names: &mut Names) -> Parsed {
    let mut parsed = Parsed::default();
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = &bytes[..error.valid_up_to()];
            parsed.broken.push(Fault {
                line: Some(good.split(|byte| *byte == b'\n').count() as u64),
                column: None,
                reason: "the text is not UTF-8".to_owned(),
            });
            return parsed;
        }
    };
    for (lines_before, document) in documents(text, format) {
        let mut sink = Sink { interest, names, parsed: Parsed::default() };
        match read_document(document, format, &mut sink) {
            Ok(()) => {
                let Parsed { mut objects, broken, refused } = sink.parsed;
                parsed.objects.append(&mut objects);
                parsed.broken.extend(broken.into_iter().map(|fault| fault.below(lines_before)));
                let below = |(key, fault): (Key, Fault)| (key, fault.below(lines_before));
                parsed.refused.extend(refused.into_iter().map(below));
            }
            Err(fault) => parsed.broken.push(fault.below(lines_before)),
        }
    }
    parsed
}

/// The documents of a text, each with the number of lines before it. A line that begins with `---` starts one; inside a
/// YAML value such a line cannot occur, because values are indented or quoted.
fn documents(text: &str, format: Format) -> Vec<(u64, &str)> {
    if format == Format::Json {
        return vec![(0, text)];
    }
    let mut found = Vec::new();
    let (mut start, mut start_line, mut at, mut line) = (0, 0, 0, 0);
    for content in text.split_inclusive('\n') {
        let is_marker = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_marker {
            found.push((start_line, &text[start..at]));
            (start, start_line) = (at, line);
        }
        at += content.len();
        line += 1;
    }
    found.push((start_line, &text[start..]));
    found
}

/// What a document or an item says it is.
#[derive(Deserialize, Clone, Default)]
#[serde(rename_all = "camelCase", default)]
struct TypeMeta {
    api_version: Option<String>,
    kind: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Service,
    Slice,
    Node,
    Other,
}

enum Shape {
    One(Kind),
    /// A list of one kind; its items need not say what they are.
    ListOf(Kind),
    /// Each item says what it is.
    List,
}

impl TypeMeta {
    fn shape(&self) -> Shape {
        let api_version = self.api_version.as_deref().unwrap_or_default();
        match (api_version, self.kind.as_deref().unwrap_or_default()) {
            ("v1", "List") => Shape::List,
            (_, kind) => match kind.strip_suffix("List").map(|item| Kind::of(api_version, item)) {
                None | Some(Kind::Other) => Shape::One(Kind::of(api_version, kind)),
                Some(item) => Shape::ListOf(item),
            },
        }
    }
}

impl Kind {
    fn of(api_version: &str, kind: &str) -> Self {
        match (api_version, kind) {
            ("v1", "Service") => Self::Service,
            ("discovery.k8s.io/v1", "EndpointSlice") => Self::Slice,
            ("v1", "Node") => Self::Node,
            _ => Self::Other,
        }
    }
}

/// The kinds of the items of a `List`.
#[derive(Deserialize)]
struct ItemKinds {
    items: Option<Vec<TypeMeta>>,
}

/// Why an object of a manifest is not taken in.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// From no source.
    #[error(transparent)]
    Refused(Refused),
    /// An API server assigns an address, a folder does not.
    #[error("the Service has no spec.clusterIP: give it an address, or None for a headless one")]
    NoClusterIp,
}

/// Where objects go as soon as they are read.
struct Sink<'a> {
    interest: &'a Interest,
    names: &'a mut Names,
    parsed: Parsed,
}

fn read_document(text: &str, format: Format, sink: &mut Sink<'_>) -> Result<(), Fault> {
    let Some(meta) = read::<Option<TypeMeta>>(text, format)? else { return Ok(()) };
    if meta.kind.is_none() || meta.api_version.is_none() {
        let missing = if meta.kind.is_none() { "kind" } else { "apiVersion" };
        return Err(Fault { line: Some(1), column: None, reason: format!("the document has no {missing}") });
    }
    match meta.shape() {
        Shape::One(Kind::Other) => Ok(()),
        Shape::One(Kind::Service) => {
            read_placed(text, format).map(|(object, line)| sink.service(&object, line))
        }
        Shape::One(Kind::Slice) => read_placed(text, format).map(|(object, line)| sink.slice(&object, line)),
        Shape::One(Kind::Node) => read_placed(text, format).map(|(object, line)| sink.node(&object, line)),
        Shape::ListOf(kind) => read_items(text, format, ListVisitor { sink, format, kind: &|_| kind }),
        Shape::List => {
            let kinds: Vec<Kind> = read::<ItemKinds>(text, format)?
                .items
                .iter()
                .flatten()
                .map(|item| match item.shape() {
                    Shape::One(kind) => kind,
                    Shape::ListOf(_) | Shape::List => Kind::Other,
                })
                .collect();
            let kind = |at: usize| kinds.get(at).copied().unwrap_or(Kind::Other);
            read_items(text, format, ListVisitor { sink, format, kind: &kind })
        }
    }
}

impl Sink<'_> {
    fn service(&mut self, object: &ApiService, line: Option<u64>) {
        if !self.interest.concerns_us(object.metadata.labels.as_ref()) || select::is_headless(object) {
            return;
        }
        let Some(name) = self.name(&object.metadata, "Service", line) else { return };
        let key = Key::Service(self.names.service(namespace(&object.metadata), name));
        let converted = service(object, self.names).map_err(Unusable::Refused).and_then(|service| {
            // An address that is none is a fault of the Service, which names it.
            let has_none = service.kind != ServiceType::ExternalName
                && service.cluster_ips.is_empty()
                && service.faults.is_empty();
            if has_none {
                return Err(Unusable::NoClusterIp);
            }
            Ok(Object::Service(self.interest.restrict(service)))
        });
        self.add(converted, key, line);
    }

    fn slice(&mut self, object: &EndpointSlice, line: Option<u64>) {
        if !self.interest.concerns_us(object.metadata.labels.as_ref()) {
            return;
        }
        let Some(name) = self.name(&object.metadata, "EndpointSlice", line) else { return };
        let key = Key::Slice(self.names.slice(namespace(&object.metadata), name));
        let converted = slice(object, self.names).map(Object::Slice).map_err(Unusable::Refused);
        self.add(converted, key, line);
    }

    fn node(&mut self, object: &ApiNode, line: Option<u64>) {
        let Some(name) = self.name(&object.metadata, "Node", line) else { return };
        if *name == *self.interest.own_node {
            let converted = node(object, self.names).map(Object::Node).map_err(Unusable::Refused);
            self.add(converted, Key::Node(name.into()), line);
        }
    }

    /// The name of an object. Without one it may be any of those that the file has had, so the document counts as broken.
    fn name<'m>(&mut self, meta: &'m ObjectMeta, kind: &str, line: Option<u64>) -> Option<&'m str> {
        let name = meta.name.as_deref().filter(|name| !name.is_empty());
        if name.is_none() {
            let reason = format!("{kind} without name: {}", Refused::NoName);
            self.parsed.broken.push(Fault { line, column: None, reason });
        }
        name
    }

    fn add(&mut self, converted: Result<Object, Unusable>, key: Key, line: Option<u64>) {
        match converted {
            Ok(object) => self.parsed.objects.push(object),
            Err(reason) => {
                let reason = format!("{key}: {reason}");
                self.parsed.refused.push((key, Fault { line, column: None, reason }));
            }
        }
    }
}

/// Reads the items of a list one by one, so that no list of API objects is ever held.
struct ListVisitor<'s, 'a> {
    sink: &'s mut Sink<'a>,
    format: Format,
    kind: &'s dyn Fn(usize) -> Kind,
}

impl<'de> Visitor<'de> for ListVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                map.next_value_seed(Items { list: &mut self })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Items<'v, 's, 'a> {
    list: &'v mut ListVisitor<'s, 'a>,
}

impl<'de> serde::de::DeserializeSeed<'de> for Items<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence of objects")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let ListVisitor { sink, format, kind } = self.list;
        for at in 0.. {
            let next = match kind(at) {
                Kind::Service => {
                    next_placed(&mut items, *format)?.map(|(object, line)| sink.service(&object, line))
                }
                Kind::Slice => {
                    next_placed(&mut items, *format)?.map(|(object, line)| sink.slice(&object, line))
                }
                Kind::Node => {
                    next_placed(&mut items, *format)?.map(|(object, line)| sink.node(&object, line))
                }
                Kind::Other => items.next_element::<IgnoredAny>()?.map(|_| ()),
            };
            if next.is_none() {
                break;
            }
        }
        Ok(())
    }
}

fn read_items(text: &str, format: Format, visitor: ListVisitor<'_, '_>) -> Result<(), Fault> {
    match format {
        Format::Yaml => {
            serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(), |deserializer| {
                deserializer.deserialize_map(visitor)
            })
            .map_err(|error| yaml_fault(&error))
        }
        Format::Json => {
            let mut deserializer = serde_json::Deserializer::from_str(text);
            deserializer
                .deserialize_map(visitor)
                .and_then(|()| deserializer.end())
                .map_err(|error| json_fault(&error))
        }
    }
}

fn read<'de, T: Deserialize<'de>>(text: &'de str, format: Format) -> Result<T, Fault> {
    match format {
        Format::Yaml => {
            serde_saphyr::from_str_with_options(text, yaml_options()).map_err(|error| yaml_fault(&error))
        }
        Format::Json => serde_json::from_str(text).map_err(|error| json_fault(&error)),
    }
}

/// A value and the line where it begins, which only YAML tells.
fn read_placed<'de, T: Deserialize<'de>>(text: &'de str, format: Format) -> Result<(T, Option<u64>), Fault> {
    match format {
        Format::Yaml => read(text, format).map(placed),
        Format::Json => read(text, format).map(|value| (value, None)),
    }
}

/// The same for the next item of a list.
fn next_placed<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    items: &mut A,
    format: Format,
) -> Result<Option<(T, Option<u64>)>, A::Error> {
    Ok(match format {
        Format::Yaml => items.next_element()?.map(placed),
        Format::Json => items.next_element()?.map(|value| (value, None)),
    })
}

fn placed<T>(spanned: Spanned<T>) -> (T, Option<u64>) {
    (spanned.value, Some(spanned.referenced.line()))
}

/// No limit on size, because a folder may hold a whole cluster; depth and aliases stay limited, because they are what
/// turns a small file into a large one.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    }
}

fn yaml_fault(error: &serde_saphyr::Error) -> Fault {
    let location = error.location();
    Fault {
        line: location.map(|location| location.line()),
        column: location.map(|location| location.column()),
        reason: UserMessageFormatter.format_message(error).into_owned(),
    }
}

fn json_fault(error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    // The position is in fields of its own.
    let reason = text.rsplit_once(" at line ").map_or(&*text, |(reason, _)| reason);
    Fault { line: Some(error.line() as u64), column: Some(error.column() as u64), reason: reason.to_owned() }
}
