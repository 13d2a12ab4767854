//! What the generator has in the API server, and its JSON.
//!
//! Numbers say who is who: Service `i` has the cluster IPs `10.0.7.i` and `fd00:10::7XX` (XX is i in hexadecimal), the
//! external IPs `203.0.113.i` and `2001:db8::e:i`, the load-balancer addresses `198.51.100.i` and `2001:db8::f:i`, and
//! NodePorts from 30,000 + 100 i.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

/// The Node that both proxies serve.
pub(super) const NODE: &str = "twin";

/// The Node of the backends elsewhere.
pub(super) const OTHER_NODE: &str = "other";

/// The backends, by their place in this list: a and b are pods of the node, h is the node itself, the others are elsewhere.
pub(super) const BACKENDS: [&str; 7] = ["a", "b", "h", "r1", "r2", "r3", "r4"];

/// Ports of every backend.
pub(super) const TARGET_PORTS: [u16; 3] = [8080, 8081, 8082];

/// Addresses of backend `b`.
pub(super) fn backend(b: usize) -> [IpAddr; 2] {
    let last = u8::try_from(b).unwrap_or(u8::MAX);
    match b {
        0 | 1 => [
            Ipv4Addr::new(10, 1, 1, 10 + last).into(),
            Ipv6Addr::new(0xfd00, 0x10, 1, 1, 0, 0, 0, 0x10 + u16::from(last)).into(),
        ],
        2 => [NODE_IPS[0], NODE_IPS[1]],
        _ => [
            Ipv4Addr::new(10, 2, 1, last).into(),
            Ipv6Addr::new(0xfd00, 0x10, 2, 1, 0, 0, 0, u16::from(last)).into(),
        ],
    }
}

/// Addresses of the node, as [`crate::Topology`] gives them.
pub(super) const NODE_IPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 168, 50, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x192, 0x168, 0x50, 0, 0, 0, 1)),
];

/// TCP, UDP or SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl Transport {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// Type of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
    /// A ClusterIP of None.
    Headless,
}

impl Kind {
    pub(super) fn has_cluster_ip(self) -> bool {
        !matches!(self, Self::ExternalName | Self::Headless)
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) transport: Transport,
    pub(super) number: u16,
    /// The NodePort, for the types that have one.
    pub(super) for_nodes: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Place in [`BACKENDS`].
    pub(super) backend: usize,
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
    pub(super) has_node: bool,
    pub(super) zones: Vec<String>,
    pub(super) nodes: Vec<String>,
}

impl Endpoint {
    /// ES-8.
    pub(super) fn is_terminating(&self) -> bool {
        self.terminating == Some(true)
    }
}

/// An EndpointSlice of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) number: usize,
    /// 0 for IPv4, 1 for IPv6.
    pub(super) family: usize,
    /// Name, transport, target port.
    pub(super) ports: Vec<(String, Transport, u16)>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// An entry of the load balancer's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ingress {
    pub(super) family: usize,
    /// `ipMode`; None: the field is absent.
    pub(super) mode: Option<&'static str>,
}

/// A Service and its slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) index: u8,
    /// Otherwise its slices are there without it.
    pub(super) exists: bool,
    pub(super) kind: Kind,
    /// The first one is that of `clusterIP`.
    pub(super) families: Vec<usize>,
    pub(super) ports: Vec<Port>,
    pub(super) external_local: bool,
    /// None: the field is absent.
    pub(super) internal_local: Option<bool>,
    /// Seconds.
    pub(super) affinity: Option<u32>,
    pub(super) external_ips: Vec<usize>,
    pub(super) ingress: Vec<Ingress>,
    pub(super) source_ranges: Vec<&'static str>,
    pub(super) node_ports: bool,
    pub(super) label: bool,
    pub(super) publish: bool,
    pub(super) slices: Vec<Slice>,
    /// Ports that it had at any time.
    pub(super) past_ports: BTreeSet<u16>,
    /// NodePorts that it had at any time.
    pub(super) past_node_ports: BTreeSet<u16>,
}

impl Service {
    pub(super) fn name(&self) -> String {
        format!("s{}", self.index)
    }

    pub(super) fn cluster_ip(&self, family: usize) -> IpAddr {
        numbered(self.index, family, Ipv4Addr::new(10, 0, 7, 0), "fd00:10::700")
    }

    pub(super) fn external_ip(&self, family: usize) -> IpAddr {
        numbered(self.index, family, Ipv4Addr::new(203, 0, 113, 0), "2001:db8::e:0")
    }

    pub(super) fn balanced_ip(&self, family: usize) -> IpAddr {
        numbered(self.index, family, Ipv4Addr::new(198, 51, 100, 0), "2001:db8::f:0")
    }

    /// Whether its type allows an external policy, as the API server sees it.
    fn has_external(&self) -> bool {
        matches!(self.kind, Kind::NodePort | Kind::LoadBalancer) || !self.external_ips.is_empty()
    }

    /// Whether its ports have NodePorts.
    pub(super) fn has_node_ports(&self) -> bool {
        self.kind == Kind::NodePort || (self.kind == Kind::LoadBalancer && self.node_ports)
    }

    /// The Service as JSON.
    pub(super) fn object(&self) -> Value {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": self.name(), "labels": {"app": "twin"}},
            "spec": self.spec(),
        });
        if self.label {
            object["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("other");
        }
        if self.kind == Kind::LoadBalancer {
            object["status"] = json!({"loadBalancer": {"ingress": self.ingress_json()}});
        }
        object
    }

    fn spec(&self) -> Value {
        let ports: Vec<Value> = self.ports.iter().map(|port| self.port_json(port)).collect();
        let mut spec = json!({"ports": ports, "publishNotReadyAddresses": self.publish});
        match self.kind {
            Kind::ExternalName => {
                return json!({"type": "ExternalName", "externalName": "twin.example", "ports": ports});
            }
            Kind::Headless => {
                spec["clusterIP"] = json!("None");
                spec["type"] = json!("ClusterIP");
                return spec;
            }
            Kind::ClusterIp => spec["type"] = json!("ClusterIP"),
            Kind::NodePort => spec["type"] = json!("NodePort"),
            Kind::LoadBalancer => {
                spec["type"] = json!("LoadBalancer");
                spec["allocateLoadBalancerNodePorts"] = json!(self.node_ports);
                spec["loadBalancerSourceRanges"] = json!(self.source_ranges);
            }
        }
        let ips: Vec<IpAddr> = self.families.iter().map(|family| self.cluster_ip(*family)).collect();
        let families: Vec<&str> = self.families.iter().map(|family| family_name(*family)).collect();
        spec["clusterIP"] = json!(ips[0]);
        spec["clusterIPs"] = json!(ips);
        spec["ipFamilies"] = json!(families);
        spec["ipFamilyPolicy"] = json!(if ips.len() > 1 { "RequireDualStack" } else { "SingleStack" });
        let external: Vec<IpAddr> =
            self.external_ips.iter().map(|family| self.external_ip(*family)).collect();
        spec["externalIPs"] = json!(external);
        if self.has_external() {
            spec["externalTrafficPolicy"] = json!(if self.external_local { "Local" } else { "Cluster" });
        }
        if let Some(local) = self.internal_local {
            spec["internalTrafficPolicy"] = json!(if local { "Local" } else { "Cluster" });
        }
        spec["sessionAffinity"] = json!("None");
        if let Some(seconds) = self.affinity {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        spec
    }

    fn port_json(&self, port: &Port) -> Value {
        let mut json =
            json!({"protocol": port.transport.name(), "port": port.number, "targetPort": TARGET_PORTS[0]});
        if !port.name.is_empty() {
            json["name"] = json!(port.name);
        }
        if self.has_node_ports() {
            json["nodePort"] = json!(port.for_nodes);
        }
        json
    }

    fn ingress_json(&self) -> Vec<Value> {
        let entry = |ingress: &Ingress| {
            let ip = self.balanced_ip(ingress.family);
            match ingress.mode {
                Some("hostname") => json!({"hostname": "balancer.example"}),
                Some(mode) => json!({"ip": ip, "ipMode": mode}),
                None => json!({"ip": ip}),
            }
        };
        self.ingress.iter().map(entry).collect()
    }

    /// Name of a slice.
    pub(super) fn slice_name(&self, slice: &Slice) -> String {
        format!("s{}-{}-{}", self.index, ["v4", "v6"][slice.family], slice.number)
    }

    /// A slice as JSON.
    pub(super) fn slice_object(&self, slice: &Slice) -> Value {
        let port = |(name, transport, number): &(String, Transport, u16)| json!({"name": name, "protocol": transport.name(), "port": number});
        let endpoints: Vec<Value> =
            slice.endpoints.iter().map(|endpoint| endpoint_json(endpoint, slice.family)).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": self.slice_name(slice), "labels": {"kubernetes.io/service-name": self.name()},
            },
            "addressType": family_name(slice.family),
            "ports": slice.ports.iter().map(port).collect::<Vec<_>>(),
            "endpoints": endpoints,
        })
    }

    /// How many backends a port can have at most.
    pub(super) fn most_backends(&self, family: usize, port: &Port) -> usize {
        let mut found = BTreeSet::new();
        for slice in self.slices.iter().filter(|slice| slice.family == family) {
            for (_, _, number) in slice
                .ports
                .iter()
                .filter(|(name, transport, _)| *name == port.name && *transport == port.transport)
            {
                found.extend(slice.endpoints.iter().map(|endpoint| (endpoint.backend, *number)));
            }
        }
        found.len()
    }
}

/// As the API spells it.
fn family_name(family: usize) -> &'static str {
    if family == 0 { "IPv4" } else { "IPv6" }
}

fn endpoint_json(endpoint: &Endpoint, family: usize) -> Value {
    let mut conditions = json!({});
    let fields =
        [("ready", endpoint.ready), ("serving", endpoint.serving), ("terminating", endpoint.terminating)];
    for (name, value) in fields {
        if let Some(value) = value {
            conditions[name] = json!(value);
        }
    }
    let mut json = json!({"addresses": [backend(endpoint.backend)[family]], "conditions": conditions});
    if endpoint.has_node {
        json["nodeName"] = json!(if endpoint.backend < 3 { NODE } else { OTHER_NODE });
    }
    let names = |names: &[String]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    if !endpoint.zones.is_empty() {
        json["hints"]["forZones"] = json!(names(&endpoint.zones));
    }
    if !endpoint.nodes.is_empty() {
        json["hints"]["forNodes"] = json!(names(&endpoint.nodes));
    }
    json
}

fn numbered(index: u8, family: usize, ipv4: Ipv4Addr, ipv6: &str) -> IpAddr {
    if family == 0 {
        return Ipv4Addr::from(u32::from(ipv4) + u32::from(index)).into();
    }
    let base: Ipv6Addr = ipv6.parse().unwrap_or(Ipv6Addr::UNSPECIFIED);
    Ipv6Addr::from(u128::from(base) + u128::from(index)).into()
}

/// The Node that both proxies serve, in `zone`.
pub(super) fn node_object(zone: Option<&str>) -> Value {
    let addresses = NODE_IPS.map(|ip| ip.to_string());
    let mut node = crate::control_plane::objects::node(NODE, &[&addresses[0], &addresses[1]]);
    if let Some(zone) = zone {
        node["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
    }
    node
}
