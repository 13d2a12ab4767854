//! Services with an address of every kind, told from each other by a number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use crate::agent::{service, slice};

/// Service `n`: cluster IPs `10.0.7.n` and `fd00:10:0:7::n`, load-balancer addresses `198.51.100.n` and `2001:db8:51::n`, external IPs
/// `203.0.113.n` and `2001:db8:113::n`, all with port 80, and NodePort 30000 + n; TCP and UDP. `n` has two digits, which the IPv6
/// addresses show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered(pub u8);

/// Port of all addresses but NodePorts.
pub const PORT: u16 = 80;

/// Port of all endpoints.
pub const TARGET_PORT: u16 = 8080;

impl Numbered {
    /// Cluster IPs.
    pub fn cluster_ips(self) -> [IpAddr; 2] {
        self.ips([10, 0, 7], [0xfd00, 0x10, 0, 7])
    }

    /// Addresses of the load balancer.
    pub fn balanced_ips(self) -> [IpAddr; 2] {
        self.ips([198, 51, 100], [0x2001, 0xdb8, 0x51, 0])
    }

    /// External IPs.
    pub fn external_ips(self) -> [IpAddr; 2] {
        self.ips([203, 0, 113], [0x2001, 0xdb8, 0x113, 0])
    }

    /// The NodePort.
    pub fn node_port(self) -> u16 {
        30_000 + u16::from(self.0)
    }

    fn ips(self, [a, b, c]: [u8; 3], [p, q, r, s]: [u16; 4]) -> [IpAddr; 2] {
        let last = u16::from(self.0 / 10) * 16 + u16::from(self.0 % 10);
        [Ipv4Addr::new(a, b, c, self.0).into(), Ipv6Addr::new(p, q, r, s, 0, 0, 0, last).into()]
    }

    /// The Service and its slices. Of each endpoint, the address and the number of its node; `more` is merged into the Service's
    /// `spec`.
    pub fn objects(self, name: &str, endpoints: &[(IpAddr, usize)], more: &Value) -> Vec<Value> {
        let ports = [("tcp", "TCP", PORT), ("udp", "UDP", PORT)];
        let ips = self.cluster_ips().map(|ip| ip.to_string());
        let mut object = service(name, &ips.each_ref().map(String::as_str), &ports);
        let numbered = ports.map(|(name, protocol, port)| {
            json!({
                "name": name, "protocol": protocol, "port": port, "targetPort": TARGET_PORT,
                "nodePort": self.node_port(),
            })
        });
        let given = json!({"type": "LoadBalancer", "ports": numbered, "externalIPs": self.external_ips()});
        for fields in [&given, more] {
            for (field, value) in fields.as_object().into_iter().flatten() {
                object["spec"][field] = value.clone();
            }
        }
        let ingress = self.balanced_ips().map(|ip| json!({"ip": ip}));
        object["status"] = json!({"loadBalancer": {"ingress": ingress}});
        let mut objects = vec![object];
        for (at, (addr, node)) in endpoints.iter().enumerate() {
            for (port, protocol, _) in ports {
                let mut part =
                    slice(&format!("{name}-{at}-{port}"), name, (port, protocol, TARGET_PORT), &[*addr]);
                part["endpoints"][0]["nodeName"] = json!(format!("node{node}"));
                objects.push(part);
            }
        }
        objects
    }
}
