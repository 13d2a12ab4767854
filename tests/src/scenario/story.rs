//! A story as it is written.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_agent::k8s;
use lb_agent::model::{self, Names, ServiceName, SliceName};
use serde::Deserialize;
use serde_json::Value;

/// What happens to the cluster, as seen from one node.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Story {
    /// What the story shows; one sentence.
    pub shows: String,
    /// In order.
    pub steps: Vec<Step>,
}

/// One thing that happens, after which the maps come to rest.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// In words.
    pub step: String,
    /// Objects that appear or change, as `kubectl get -o yaml` prints them.
    #[serde(default)]
    pub apply: Vec<Value>,
    /// Objects that disappear: `Service default/web`.
    #[serde(default)]
    pub delete: Vec<String>,
    /// The agent is away while this happens, and starts afterwards.
    #[serde(default)]
    pub restart: bool,
}

/// An object of a step.
#[derive(Debug)]
pub enum Object {
    /// A Service.
    Service(model::Service),
    /// An `EndpointSlice`.
    Slice(model::Slice),
    /// A Node.
    Node(model::Node),
}

/// Every story of a folder with its name, sorted by name.
///
/// # Errors
/// Names the file and the place.
pub fn read_all(folder: &Path) -> Result<Vec<(String, Story)>> {
    let mut stories = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "yaml") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let story = read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            stories.push((name, story));
        }
    }
    ensure!(!stories.is_empty(), "{} has no stories", folder.display());
    stories.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(stories)
}

fn read(path: &Path) -> Result<Story> {
    Ok(serde_saphyr::from_str(&fs::read_to_string(path)?)?)
}

impl Step {
    /// The objects that appear or change.
    ///
    /// # Errors
    /// An object that is none.
    pub fn objects(&self, names: &mut Names) -> Result<Vec<Object>> {
        self.apply
            .iter()
            .map(|value| {
                Object::read(value.clone(), names)
                    .with_context(|| format!("in step {:?}: {value}", self.step))
            })
            .collect()
    }

    /// The kinds and names of the objects that disappear.
    ///
    /// # Errors
    /// A line that does not read `Kind namespace/name`.
    pub fn gone(&self) -> Result<Vec<Gone>> {
        self.delete
            .iter()
            .map(|line| {
                let (kind, name) = line.split_once(' ').with_context(|| format!("{line:?} has no name"))?;
                let (namespace, name) =
                    name.split_once('/').with_context(|| format!("{line:?} has no namespace"))?;
                match kind {
                    "Service" => Ok(Gone::Service(ServiceName::new(namespace, name))),
                    "EndpointSlice" => Ok(Gone::Slice(SliceName::new(namespace, name))),
                    _ => bail!("{kind} cannot be deleted"),
                }
            })
            .collect()
    }
}

/// An object that disappears.
#[derive(Debug)]
pub enum Gone {
    /// A Service.
    Service(ServiceName),
    /// An `EndpointSlice`.
    Slice(SliceName),
    /// A Node.
    Node(Arc<str>),
}

impl Object {
    /// An object of the kind that it names.
    ///
    /// # Errors
    /// A kind that is not known, a value that is no such object, or an object that cannot be used.
    pub fn read(value: Value, names: &mut Names) -> Result<Self> {
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        Ok(match kind {
            "Service" => Self::Service(k8s::service(&serde_json::from_value::<Service>(value)?, names)?),
            "EndpointSlice" => {
                Self::Slice(k8s::slice(&serde_json::from_value::<EndpointSlice>(value)?, names)?)
            }
            "Node" => Self::Node(k8s::node(&serde_json::from_value::<Node>(value)?, names)?),
            other => bail!("kind {other:?} is not known"),
        })
    }
}

impl Gone {
    /// The object of the kind and name that `value` has; nothing if it is of no kind that disappears.
    pub fn read(value: &Value) -> Option<Self> {
        let text = |field: &str| value.pointer(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let namespace = text("/metadata/namespace").unwrap_or("default");
        let name = text("/metadata/name")?;
        match text("/kind")? {
            "Service" => Some(Self::Service(ServiceName::new(namespace, name))),
            "EndpointSlice" => Some(Self::Slice(SliceName::new(namespace, name))),
            "Node" => Some(Self::Node(name.into())),
            _ => None,
        }
    }
}
