//! Service -> [`model::Service`](crate::model::Service). Pure; what cannot be used comes back as faults of the result.

use core::net::IpAddr;
use std::collections::HashSet;
use std::hash::Hash;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self as api, ServiceSpec};

use super::fields::{self, Faults, shown};
use super::{Refused, namespace};
use crate::model::{
    ALGORITHM, Algorithm, ClusterIps, Family, Few, Names, Protocol, Reason, Service, ServicePort,
    ServiceType, TrafficPolicy,
};

/// The API server's default for `ClientIP` affinity (SP-9).
const DEFAULT_TIMEOUT_S: u32 = 10_800;
/// The longest timeout the API allows (SP-9).
const LONGEST_TIMEOUT_S: u32 = 86_400;

/// Reduces a Service to what decides where traffic goes. Labels are not looked at: the source has applied SEL-1.
pub fn service(object: &api::Service, names: &mut Names) -> Result<Service, Refused> {
    let meta = &object.metadata;
    let name = meta.name.as_deref().filter(|name| !name.is_empty()).ok_or(Refused::NoName)?;
    let mut service = Service::new(names.service(namespace(meta), name));
    service.created_s = meta.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());

    let empty = ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let mut faults = Faults::default();
    service.kind = kind(spec, &mut faults);
    service.cluster_ips = cluster_ips(spec, &mut faults);
    if service.is_proxied() {
        service.ports = ports(spec, names, &mut faults);
        service.external_ips = external_ips(spec, &mut faults);
        service.load_balancer_ips = load_balancer_ips(object, &mut faults);
        service.source_ranges = source_ranges(spec, &mut faults);
        service.affinity_s = affinity_s(spec, &mut faults);
        service.algorithm = algorithm(object, &mut faults);
        service.internal_policy =
            policy(spec.internal_traffic_policy.as_deref(), "spec.internalTrafficPolicy", &mut faults);
        service.external_policy =
            policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy", &mut faults);
        service.health_check_node_port = health_check_node_port(spec, &service, &mut faults);
    }
    service.faults = faults.finish(|| "spec".to_owned());
    Ok(service)
}

fn kind(spec: &ServiceSpec, faults: &mut Faults) -> ServiceType {
    match spec.type_.as_deref() {
        None | Some("ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            let reason = Reason::UnknownValue { value: shown(other), used: "ClusterIP" };
            faults.add(|| "spec.type".to_owned(), reason);
            ServiceType::ClusterIp
        }
    }
}

/// SEL-4, SEL-6: of `spec.clusterIPs`, or of `spec.clusterIP` where the list is absent, those whose family is at the same
/// place in `spec.ipFamilies`. Without families the first one alone (kube-proxy's `GetClusterIPByFamily`). The API server
/// fills all three fields; only a manifest can have less.
fn cluster_ips(spec: &ServiceSpec, faults: &mut Faults) -> ClusterIps {
    let mut found = ClusterIps::default();
    if spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some("None") {
        return found;
    }
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let texts = if listed.is_empty() { spec.cluster_ip.as_slice() } else { listed };
    let families = spec.ip_families.as_deref().unwrap_or_default();
    for (at, text) in texts.iter().enumerate() {
        if text.is_empty() || text == "None" {
            continue;
        }
        let result = fields::host_address(text).and_then(|addr| {
            let family = Family::of(&addr);
            let is_listed = match families {
                [] => at == 0,
                families => families.get(at).is_some_and(|listed| *listed == family.to_string()),
            };
            match addr {
                _ if found.of(family).is_some() => return Err(Reason::SecondClusterIp(addr)),
                _ if !is_listed => return Err(Reason::FamilyNotListed(addr)),
                IpAddr::V4(addr) => found.v4 = Some(addr),
                IpAddr::V6(addr) => found.v6 = Some(addr),
            }
            Ok(())
        });
        if let Err(reason) = result {
            faults.add(|| format!("spec.clusterIPs[{at}]"), reason);
        }
    }
    found
}

fn ports(spec: &ServiceSpec, names: &mut Names, faults: &mut Faults) -> Box<[ServicePort]> {
    let ports = spec.ports.as_deref().unwrap_or_default();
    // Nearly every Service has one port, which nothing can collide with: the sets stay without memory.
    let several = ports.len() > 1;
    let mut taken_names = HashSet::new();
    let mut taken_numbers = HashSet::new();
    let mut taken_node_ports = HashSet::new();
    let mut usable = Vec::with_capacity(ports.len());
    for (at, given) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{at}].{name}");
        let protocol = match fields::protocol(given.protocol.as_deref()) {
            Ok(protocol) => protocol,
            Err(reason) => {
                faults.add(|| field("protocol"), reason);
                continue;
            }
        };
        let port = match fields::port(given.port) {
            Ok(port) => port,
            Err(reason) => {
                faults.add(|| field("port"), reason);
                continue;
            }
        };
        let name = given.name.as_deref().unwrap_or_default();
        if taken_names.contains(&(protocol, name)) {
            faults.add(|| field("name"), Reason::SamePortName(shown(name)));
            continue;
        }
        if several && is_taken(&mut taken_numbers, protocol, port) {
            faults.add(|| field("port"), Reason::SamePortNumber(port, protocol));
            continue;
        }
        // Only now: a port that is refused takes nothing away from a later one.
        if several {
            taken_names.insert((protocol, name));
        }
        let mut node_port = optional_port(given.node_port, || field("nodePort"), faults);
        if several && node_port != 0 && is_taken(&mut taken_node_ports, protocol, node_port) {
            faults.add(|| field("nodePort"), Reason::SamePortNumber(node_port, protocol));
            node_port = 0;
        }
        usable.push(ServicePort { name: names.share(name), protocol, port, node_port });
    }
    usable.into()
}

/// Whether `value` was used with `protocol` before; it is now.
fn is_taken<T: Eq + Hash>(taken: &mut HashSet<(Protocol, T)>, protocol: Protocol, value: T) -> bool {
    !taken.insert((protocol, value))
}

/// A port that may be absent; absent, zero and unusable are all 0 (NP-14).
fn optional_port(number: Option<i32>, field: impl FnOnce() -> String, faults: &mut Faults) -> u16 {
    match number {
        None | Some(0) => 0,
        Some(number) => fields::port(number).unwrap_or_else(|reason| {
            faults.add(field, reason);
            0
        }),
    }
}

/// SP-7: without a number, where one is needed, load balancers cannot tell which nodes have endpoints.
fn health_check_node_port(spec: &ServiceSpec, service: &Service, faults: &mut Faults) -> u16 {
    let field = || "spec.healthCheckNodePort".to_owned();
    let is_needed =
        service.kind == ServiceType::LoadBalancer && service.external_policy == TrafficPolicy::Local;
    if is_needed && matches!(spec.health_check_node_port, None | Some(0)) {
        faults.add(field, Reason::NoHealthCheckPort);
    }
    optional_port(spec.health_check_node_port, field, faults)
}

fn external_ips(spec: &ServiceSpec, faults: &mut Faults) -> Few<IpAddr> {
    let mut usable = Vec::new();
    for (at, text) in spec.external_ips.iter().flatten().enumerate() {
        match fields::host_address(text) {
            Ok(addr) => usable.push(addr),
            Err(reason) => faults.add(|| format!("spec.externalIPs[{at}]"), reason),
        }
    }
    usable.into()
}

/// LB-1, LB-2: entries with an address whose mode is VIP or not given. Host names and mode Proxy are left to the real load
/// balancer, which is no fault.
fn load_balancer_ips(object: &api::Service, faults: &mut Faults) -> Few<IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let mut usable = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        if entry.ip_mode.as_deref().is_some_and(|mode| mode != "VIP") {
            continue;
        }
        match fields::host_address(text) {
            Ok(addr) => usable.push(addr),
            Err(reason) => faults.add(|| format!("status.loadBalancer.ingress[{at}].ip"), reason),
        }
    }
    usable.into()
}

fn source_ranges(spec: &ServiceSpec, faults: &mut Faults) -> Few<IpNet> {
    let given = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    fields::ranges(given, "spec.loadBalancerSourceRanges", faults).into_vec().into()
}

/// SP-9.
fn affinity_s(spec: &ServiceSpec, faults: &mut Faults) -> u32 {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let Some(given) = config.and_then(|config| config.timeout_seconds) else {
                return DEFAULT_TIMEOUT_S;
            };
            let usable =
                u32::try_from(given).ok().filter(|seconds| (1..=LONGEST_TIMEOUT_S).contains(seconds));
            usable.unwrap_or_else(|| {
                faults.add(
                    || "spec.sessionAffinityConfig.clientIP.timeoutSeconds".to_owned(),
                    Reason::TimeoutOutOfRange(given.into()),
                );
                DEFAULT_TIMEOUT_S
            })
        }
        None | Some("None" | "") => 0,
        Some(other) => {
            let reason = Reason::UnknownValue { value: shown(other), used: "None" };
            faults.add(|| "spec.sessionAffinity".to_owned(), reason);
            0
        }
    }
}

fn algorithm(object: &api::Service, faults: &mut Faults) -> Option<Algorithm> {
    let text = object.metadata.annotations.as_ref()?.get(ALGORITHM)?;
    let known = text.parse().ok();
    if known.is_none() {
        faults.add(|| format!("metadata.annotations[{ALGORITHM}]"), Reason::UnknownAlgorithm(shown(text)));
    }
    known
}

fn policy(text: Option<&str>, field: &'static str, faults: &mut Faults) -> TrafficPolicy {
    match text {
        Some("Local") => TrafficPolicy::Local,
        None | Some("Cluster" | "") => TrafficPolicy::Cluster,
        Some(other) => {
            let reason = Reason::UnknownValue { value: shown(other), used: "Cluster" };
            faults.add(|| field.to_owned(), reason);
            TrafficPolicy::Cluster
        }
    }
}
