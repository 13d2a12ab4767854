//! Node -> [`model::Node`](crate::model::Node). Pure; what cannot be used comes back as faults of the result.

use core::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use super::Refused;
use super::fields::{self, Faults};
use crate::model::{Names, Node};

/// The zone of a node (TP-4, TP-8).
const ZONE: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler is about to delete the node, whatever the value or the effect (HZ-4).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Reduces a Node to its zone, addresses, pod ranges and whether it is going away.
pub fn node(object: &api::Node, names: &mut Names) -> Result<Node, Refused> {
    let meta = &object.metadata;
    let name = meta.name.as_deref().filter(|name| !name.is_empty()).ok_or(Refused::NoName)?;
    let mut node = Node::new(name.into());
    let zone = meta.labels.as_ref().and_then(|labels| labels.get(ZONE)).filter(|zone| !zone.is_empty());
    node.zone = zone.map(|zone| names.share(zone));
    let mut faults = Faults::default();
    node.addresses = addresses(object, &mut faults);
    node.pod_cidrs = pod_cidrs(object, &mut faults);
    node.faults = faults.finish(|| "status".to_owned());
    let taints = object.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.is_draining =
        meta.deletion_timestamp.is_some() || taints.into_iter().any(|taint| taint.key == TO_BE_DELETED);
    Ok(node)
}

/// Internal addresses first: the first of a family is the node's primary one (NP-3). Host names are in the list by design.
fn addresses(object: &api::Node, faults: &mut Faults) -> Box<[IpAddr]> {
    let given = object.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut usable = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (at, entry) in given.iter().enumerate().filter(|(_, entry)| entry.type_ == kind) {
            match fields::host_address(&entry.address) {
                Ok(addr) => usable.push(addr),
                Err(reason) => faults.add(|| format!("status.addresses[{at}].address"), reason),
            }
        }
    }
    usable.into()
}

fn pod_cidrs(object: &api::Node, faults: &mut Faults) -> Box<[IpNet]> {
    let Some(spec) = object.spec.as_ref() else { return Box::default() };
    let listed = spec.pod_cidrs.as_deref().unwrap_or_default();
    let single = spec.pod_cidr.as_slice();
    let given = if listed.is_empty() { single } else { listed };
    fields::ranges(given, "spec.podCIDRs", faults)
}
