//! Addresses of a cluster, and the lines of ip(8) that wire it.
//!
//! ```text
//! control plane's namespace            node N                          pods of node N
//!   nodes (bridge) 172.30.0.1, .. ──── eth0 172.30.0.10N, ..  cni0 ─── 10.244.N.0/24, fd00:10:244:N::/64
//! ```
//!
//! Nodes reach each other and the API server's addresses by that bridge, and each other's pods by routes. Nothing leads out of the
//! machine.

/// Ranges that pods of all nodes have addresses in.
pub(super) const POD_RANGES: &str = "10.244.0.0/16,fd00:10:244::/48";

/// The cluster's name server, in the ranges of Services.
pub(super) const NAME_SERVER: &str = "10.0.0.10";

/// The control plane's addresses on the wire to the nodes.
const GATEWAY: [&str; 2] = ["172.30.0.1", "fd00:172:30::1"];

/// Most nodes that the numbering has room for; a machine ends earlier.
pub(super) const MOST_NODES: u8 = 99;

/// Sysctls of a namespace that passes packets on.
pub(super) const FORWARDS: [&str; 2] = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];

/// What node `number` is called.
pub(super) fn name(number: u8) -> String {
    format!("n{number}")
}

/// The addresses of node `number`, one of each family.
pub(super) fn addresses(number: u8) -> [String; 2] {
    let last = 100 + u16::from(number);
    [format!("172.30.0.{last}"), format!("fd00:172:30::{last}")]
}

/// The ranges of the pods of node `number`, one of each family.
pub(super) fn pods(number: u8) -> [String; 2] {
    [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]
}

/// In the control plane's namespace, before there are nodes.
pub(super) fn bridge() -> String {
    let [v4, v6] = GATEWAY;
    format!(
        "link add nodes type bridge
         link set nodes up
         addr add {v4}/24 dev nodes
         addr add {v6}/64 dev nodes nodad"
    )
}

/// In the control plane's namespace, when its end of the wire to node `number` is there.
pub(super) fn port(number: u8) -> String {
    format!("link set {} master nodes\n{}", name(number), route_to_pods(number))
}

/// In the namespace of node `number` of `nodes`, when its `eth0` is there.
pub(super) fn node(number: u8, nodes: u8) -> String {
    let [v4, v6] = addresses(number);
    let [gateway4, gateway6] = GATEWAY;
    let mut lines = format!(
        "addr add {v4}/24 dev eth0
         addr add {v6}/64 dev eth0 nodad
         route add default via {gateway4}
         route add ::/0 via {gateway6}\n"
    );
    for other in (1..=nodes).filter(|other| *other != number) {
        lines += &route_to_pods(other);
    }
    lines
}

fn route_to_pods(number: u8) -> String {
    let [v4, v6] = addresses(number);
    let [pods4, pods6] = pods(number);
    format!("route add {pods4} via {v4}\nroute add {pods6} via {v6}\n")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ipnet::IpNet;

    use super::*;
    use crate::control_plane::{API_ADDRESSES, SERVICE_CIDRS};

    fn nets(text: &str) -> Vec<IpNet> {
        text.split(',').map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn pods_of_every_node_are_in_the_cluster_s_ranges_and_in_no_other() {
        for number in [1, 9, MOST_NODES] {
            for (pods, all) in pods(number).iter().zip(nets(POD_RANGES)) {
                let pods: IpNet = pods.parse().unwrap();
                assert!(all.contains(&pods), "{all} has no {pods}");
                for other in nets(SERVICE_CIDRS) {
                    assert!(!other.contains(&pods) && !pods.contains(&other), "{other} and {pods}");
                }
            }
        }
    }

    #[test]
    fn the_name_server_is_a_service() {
        let address: IpAddr = NAME_SERVER.parse().unwrap();
        assert!(nets(SERVICE_CIDRS).iter().any(|net| net.contains(&address)));
    }

    #[test]
    fn no_address_is_used_twice() {
        let mut all: Vec<String> = (1..=MOST_NODES).flat_map(addresses).collect();
        all.extend([GATEWAY, [API_ADDRESSES[0], API_ADDRESSES[2]]].concat().iter().map(ToString::to_string));
        let parsed: std::collections::BTreeSet<IpAddr> = all.iter().map(|it| it.parse().unwrap()).collect();
        assert_eq!(parsed.len(), all.len());
    }

    #[test]
    fn a_node_has_routes_to_the_pods_of_the_others_only() {
        let lines = node(2, 3);
        assert!(lines.contains("route add 10.244.1.0/24 via 172.30.0.101\n"), "{lines}");
        assert!(lines.contains("route add fd00:10:244:3::/64 via fd00:172:30::103\n"), "{lines}");
        assert!(!lines.contains("10.244.2.0"), "{lines}");
    }
}
