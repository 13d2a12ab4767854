//! `EndpointSlice` -> [`model::Slice`](crate::model::Slice), compact; the caller drops the object at once.

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::{self as api, EndpointHints};

use super::fields::{self, Faults, shown};
use super::{Refused, namespace};
use crate::model::{
    Conditions, EndpointFacts, Family, Fault, Name, Names, Reason, ServiceName, Slice, SliceBuilder,
    SlicePort, Trigger,
};

/// The Service that owns a slice (ES-2).
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// When the change of a pod or of the Service happened that the slice follows (ES-17).
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Reduces a slice to its ports, addresses, conditions, nodes and hints. Labels of SEL-1 are not looked at.
pub fn slice(object: &api::EndpointSlice, names: &mut Names) -> Result<Slice, Refused> {
    let meta = &object.metadata;
    let name = meta.name.as_deref().filter(|name| !name.is_empty()).ok_or(Refused::NoName)?;
    let owner = meta.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
    let owner = owner.filter(|owner| !owner.is_empty()).ok_or(Refused::NoOwner)?;
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        other => return Err(Refused::AddressType(shown(other))),
    };
    let name = names.slice(namespace(meta), name);
    let service = ServiceName { namespace: name.namespace.clone(), name: owner.as_str().into() };

    let mut faults = Faults::default();
    let mut builder = SliceBuilder::new(name.clone(), service, family);
    builder.ports(ports(object, &name.name, names, &mut faults)).reserve(object.endpoints.len());
    for (at, endpoint) in object.endpoints.iter().enumerate() {
        match facts(endpoint, family, names) {
            Ok(facts) => {
                builder.endpoint(&facts);
            }
            Err(reason) => faults.add(|| path(&name.name, &format!("endpoints[{at}].addresses[0]")), reason),
        }
    }
    builder.trigger(trigger(object));
    builder.faults(faults.finish(|| path(&name.name, "endpoints")));
    Ok(builder.build())
}

/// The same for a source that says of its objects what they are now: what cannot be used stays with its Service, which
/// says so, as long as it names one.
pub(super) fn watched(object: &api::EndpointSlice, names: &mut Names) -> Result<Slice, Refused> {
    match slice(object, names) {
        Err(refused @ Refused::AddressType(_)) => {
            let meta = &object.metadata;
            let name = names.slice(namespace(meta), meta.name.as_deref().unwrap_or_default());
            let owner = meta.labels.iter().find_map(|labels| labels.get(SERVICE_NAME));
            let owner = owner.map(String::as_str).unwrap_or_default();
            let service = ServiceName { namespace: name.namespace.clone(), name: owner.into() };
            let Fault { field, reason } = refused.fault();
            let fault = Fault::new(path(&name.name, &field), reason);
            Ok(Slice::unusable(name, service, fault))
        }
        result => result,
    }
}

/// A time that cannot be read is as good as none: it is for measurements only (ES-17).
fn trigger(object: &api::EndpointSlice) -> Trigger {
    let text = object.metadata.annotations.as_ref().and_then(|annotations| annotations.get(TRIGGER_TIME));
    let time = text.and_then(|text| text.parse::<Timestamp>().ok());
    Trigger::at(time.map_or(0, Timestamp::as_microsecond))
}

/// The path of a field: faults of a slice are shown with its Service.
fn path(slice: &str, field: &str) -> String {
    format!("endpointslice {slice}: {field}")
}

/// ES-4, ES-5: a port without a name or a number is ignored, which is no fault.
fn ports(object: &api::EndpointSlice, slice: &str, names: &mut Names, faults: &mut Faults) -> Vec<SlicePort> {
    let ports = object.ports.as_deref().unwrap_or_default();
    let mut usable = Vec::with_capacity(ports.len());
    for (at, given) in ports.iter().enumerate() {
        let (Some(name), Some(number)) = (given.name.as_deref(), given.port) else { continue };
        if number == 0 {
            continue;
        }
        match (fields::port(number), fields::protocol(given.protocol.as_deref())) {
            (Ok(port), Ok(protocol)) => usable.push(SlicePort { name: names.share(name), protocol, port }),
            (Err(reason), _) => faults.add(|| path(slice, &format!("ports[{at}].port")), reason),
            (_, Err(reason)) => faults.add(|| path(slice, &format!("ports[{at}].protocol")), reason),
        }
    }
    usable
}

fn facts(endpoint: &api::Endpoint, family: Family, names: &mut Names) -> Result<EndpointFacts, Reason> {
    let text = endpoint.addresses.first().map(String::as_str).unwrap_or_default();
    let addr = fields::host_address(text)?;
    if Family::of(&addr) != family {
        return Err(Reason::OtherFamily(addr));
    }
    let conditions = endpoint.conditions.as_ref();
    let (zone_hints, node_hints) = hints(endpoint.hints.as_ref(), names);
    Ok(EndpointFacts {
        addr,
        conditions: Conditions::new(
            conditions.and_then(|conditions| conditions.ready),
            conditions.and_then(|conditions| conditions.serving),
            conditions.and_then(|conditions| conditions.terminating),
        ),
        node: endpoint.node_name.as_deref().filter(|node| !node.is_empty()).map(|node| names.share(node)),
        zone_hints,
        node_hints,
    })
}

/// ES-10: only hints steer traffic; the zone of the endpoint itself does not.
fn hints(given: Option<&EndpointHints>, names: &mut Names) -> (Vec<Name>, Vec<Name>) {
    let Some(given) = given else { return (Vec::new(), Vec::new()) };
    let zones = given.for_zones.iter().flatten().map(|zone| names.share(&zone.name)).collect();
    let nodes = given.for_nodes.iter().flatten().map(|node| names.share(&node.name)).collect();
    (zones, nodes)
}
