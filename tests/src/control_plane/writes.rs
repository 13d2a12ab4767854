//! Writing objects of any kind, given as JSON, through the control plane's administrator.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::ControlPlane;
use crate::wait_for;

/// How long a write is tried again while the API server is down or busy.
const LIMIT: Duration = Duration::from_secs(30);

/// Requests under way at once in [`ControlPlane::create_all`].
const AT_ONCE: usize = 32;

/// Name of the writer in the objects' managed fields.
const FIELD_MANAGER: &str = "lb-tests";

impl ControlPlane {
    /// Creates or changes an object as `kubectl apply` does, then writes its `status`, if there is one, as a
    /// kubelet or a cloud controller does. Fields that were given before and are not now are removed, except
    /// in the status.
    ///
    /// The object has a namespace in its metadata unless its kind has none. Tried again while the API server
    /// is down.
    ///
    /// # Errors
    /// The API server refuses the object: its message is in the error.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let target = self.target(object)?;
        let what = format!("applying {}", target.name);
        self.write(&what, || apply_once(target.clone(), object.clone()))
    }

    /// Creates many new objects (their `status` is not written) in no order and without second tries; costs the
    /// API server less than [`Self::apply`] does.
    pub fn create_all(&self, objects: Vec<Value>) -> Result<()> {
        let mut targets = Vec::with_capacity(objects.len());
        for object in objects {
            targets.push((self.target(&object)?.api, serde_json::from_value::<DynamicObject>(object)?));
        }
        self.run(async move {
            let writes = stream::iter(targets).map(|(api, object)| async move {
                api.create(&PostParams::default(), &object).await.map(drop)
            });
            writes.buffer_unordered(AT_ONCE).try_collect::<()>().await
        })?;
        Ok(())
    }

    /// Deletes an object, of which kind, name and namespace matter, and waits until it is gone.
    pub fn delete(&self, object: &Value) -> Result<()> {
        self.begin_delete(object, &DeleteParams::default().grace_period(0))?;
        let Target { api, name } = self.target(object)?;
        wait_for(&format!("the end of {name}"), LIMIT, || {
            let (api, name) = (api.clone(), name.clone());
            match self.run(async move { api.get_opt(&name).await }) {
                Ok(None) => Ok(()),
                Ok(Some(_)) => Err("it is still there".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    /// Asks for the deletion of an object; none is fine.
    pub(super) fn begin_delete(&self, object: &Value, parameters: &DeleteParams) -> Result<()> {
        let target = self.target(object)?;
        self.write(&format!("deleting {}", target.name), || {
            let (target, parameters) = (target.clone(), parameters.clone());
            async move {
                match target.api.delete(&target.name, &parameters).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                    Err(error) => Err(error),
                    Ok(_) => Ok(()),
                }
            }
        })
    }

    /// Changes an object by a JSON merge patch.
    pub fn patch(&self, object: &Value, patch: &Value) -> Result<()> {
        let target = self.target(object)?;
        self.write(&format!("patching {}", target.name), || {
            let (target, patch) = (target.clone(), Patch::Merge(patch.clone()));
            async move {
                target.api.patch(&target.name, &PatchParams::default(), &patch).await?;
                Ok(())
            }
        })
    }

    /// Writes the `status` of an object that exists.
    pub fn write_status(&self, object: &Value) -> Result<()> {
        let target = self.target(object)?;
        let patch = json!({"status": object.get("status")});
        self.write(&format!("the status of {}", target.name), || {
            let (target, patch) = (target.clone(), Patch::Merge(patch.clone()));
            async move {
                target.api.patch_status(&target.name, &PatchParams::default(), &patch).await?;
                Ok(())
            }
        })
    }

    fn target(&self, object: &Value) -> Result<Target> {
        let field = |pointer| {
            let value = object.pointer(pointer).and_then(Value::as_str);
            value.with_context(|| format!("no {pointer} in {object}"))
        };
        let api_version = field("/apiVersion")?;
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, field("/kind")?));
        let api = match object.pointer("/metadata/namespace").and_then(Value::as_str) {
            Some(namespace) => Api::namespaced_with(self.client(), namespace, &resource),
            None => Api::all_with(self.client(), &resource),
        };
        Ok(Target { api, name: field("/metadata/name")?.to_owned() })
    }

    /// Runs an idempotent request until it is answered by an API server in good health.
    fn write<F>(&self, what: &str, request: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = kube::Result<()>> + Send + 'static,
    {
        wait_for(what, LIMIT, || match self.run(request()) {
            Ok(()) => Ok(Ok(())),
            Err(error) if is_passing(&error) => Err(error.to_string()),
            Err(error) => Ok(Err(error)),
        })?
        .with_context(|| what.to_owned())
    }
}

/// Where an object is written.
#[derive(Clone)]
struct Target {
    api: Api<DynamicObject>,
    name: String,
}

async fn apply_once(target: Target, mut object: Value) -> kube::Result<()> {
    let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
    let Target { api, name } = target;
    api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&object)).await?;
    if let Some(status) = status {
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status(&name, &PatchParams::default(), &patch).await?;
    }
    Ok(())
}

/// True for failures that a healthy API server would not have given.
fn is_passing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        _ => false,
    }
}
