//! A Kubernetes namespace per test.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::{Value, json};

use super::ControlPlane;
use crate::wait_for;

/// A Kubernetes namespace of one test. Dropping it lets the namespace controller delete it with all that is
/// in it.
#[derive(Debug)]
pub struct Namespace<'a> {
    control_plane: &'a ControlPlane,
    name: String,
}

impl ControlPlane {
    /// Makes the namespace `name`; each test needs its own.
    pub fn namespace(&self, name: &str) -> Result<Namespace<'_>> {
        self.apply(&namespace_object(name))?;
        Ok(Namespace { control_plane: self, name: name.to_owned() })
    }
}

impl Namespace<'_> {
    /// The name in the API.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The control plane that it is in.
    pub fn control_plane(&self) -> &ControlPlane {
        self.control_plane
    }

    /// [`ControlPlane::apply`] for an object in this namespace; the object's metadata need not say so.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.control_plane.apply(&self.own(object))
    }

    /// [`ControlPlane::create_all`] for objects in this namespace.
    pub fn create_all(&self, objects: &[Value]) -> Result<()> {
        self.control_plane.create_all(objects.iter().map(|object| self.own(object)).collect())
    }

    /// [`ControlPlane::delete`] for an object in this namespace.
    pub fn delete(&self, object: &Value) -> Result<()> {
        self.control_plane.delete(&self.own(object))
    }

    /// Marks a Pod for deletion: its endpoints are terminating, and stay until [`Self::delete`] plays the
    /// kubelet's part.
    pub fn terminate(&self, pod: &Value) -> Result<()> {
        self.control_plane.begin_delete(&self.own(pod), &DeleteParams::default().grace_period(3600))
    }

    /// Writes the status of an object and nothing else.
    pub fn status(&self, object: &Value) -> Result<()> {
        self.control_plane.write_status(&self.own(object))
    }

    /// Sets labels (`null` removes one) of an object.
    pub fn label(&self, object: &Value, labels: &Value) -> Result<()> {
        self.control_plane.patch(&self.own(object), &json!({"metadata": {"labels": labels}}))
    }

    /// The slices of `service`.
    pub fn slices(&self, service: &str) -> Result<Vec<EndpointSlice>> {
        let api: Api<EndpointSlice> = Api::namespaced(self.control_plane.client(), &self.name);
        let wanted = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let slices = self.control_plane.run(async move { api.list(&wanted).await })?;
        Ok(slices.items)
    }

    /// Waits until the ready endpoints in the slices of `service` have exactly the addresses `ips`.
    pub fn wait_for_endpoints(&self, service: &str, ips: &[&str], limit: Duration) -> Result<()> {
        let wanted: BTreeSet<String> = ips.iter().map(|&ip| ip.to_owned()).collect();
        let found = wait_for(&format!("the endpoints of {service}"), limit, || {
            let slices = self.control_plane.check_running().and_then(|()| self.slices(service));
            let ready =
                slices.map(|slices| ready_addresses(&slices)).map_err(|error| format!("{error:#}"))?;
            if ready == wanted { Ok(()) } else { Err(format!("{ready:?}")) }
        });
        found.with_context(|| self.control_plane.log_tails())
    }

    fn own(&self, object: &Value) -> Value {
        let mut object = object.clone();
        object["metadata"]["namespace"] = json!(self.name);
        object
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // Only a running API server is asked, because a dropped namespace must not wait for one; the control
        // plane itself goes away soon.
        if self.control_plane.is_serving() {
            drop(self.control_plane.begin_delete(&namespace_object(&self.name), &DeleteParams::default()));
        }
    }
}

fn namespace_object(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// The addresses of all ready endpoints in `slices`.
fn ready_addresses(slices: &[EndpointSlice]) -> BTreeSet<String> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let ready = endpoints.filter(|endpoint| {
        endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false))
    });
    ready.flat_map(|endpoint| endpoint.addresses.iter().cloned()).collect()
}
