//! Where the clients of both nodes try to connect: every address and port of the Services, used and unused.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::model::{Kind, NODE_IPS, Port, Service, Transport};
use super::nodes::Client;
use crate::probe::{Attempt, Look, Tcp, Udp};

/// A number that no Service has.
const UNUSED_PORT: u16 = 9;

/// How a client tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum How {
    /// connect() and an exchange.
    Tcp,
    /// The same on an IPv6 socket to `::ffff:a.b.c.d` (DS-6).
    MappedTcp,
    /// A connected UDP socket.
    Udp,
    /// A UDP socket that is not connected.
    Datagram,
}

/// What an address is to the Service that has it, or had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    ClusterIp,
    ExternalIp,
    Balanced,
    /// At an address of the node.
    NodePort,
    /// At a loopback address.
    LocalNodePort,
    /// At another node's address.
    OtherNode,
}

/// A destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) at: SocketAddr,
    pub(super) how: How,
    /// The Service that has the address, or had it.
    pub(super) service: u8,
    pub(super) place: Place,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} ({:?} of s{})", self.how, self.at, self.place, self.service)
    }
}

impl Target {
    /// 0 for IPv4, 1 for IPv6.
    pub(super) fn family(&self) -> usize {
        usize::from(self.at.is_ipv6())
    }

    pub(super) fn transport(&self) -> Transport {
        match self.how {
            How::Tcp | How::MappedTcp => Transport::Tcp,
            How::Udp | How::Datagram => Transport::Udp,
        }
    }

    /// The port of `service`, whose address this is, that it leads to now.
    pub(super) fn port<'a>(&self, service: &'a Service) -> Option<&'a Port> {
        let family = self.family();
        if !service.exists
            || service.label
            || !service.kind.has_cluster_ip()
            || !service.families.contains(&family)
        {
            return None;
        }
        let is_served = match self.place {
            Place::ClusterIp => true,
            Place::ExternalIp => service.external_ips.contains(&family),
            Place::Balanced => {
                service.kind == Kind::LoadBalancer
                    && service
                        .ingress
                        .iter()
                        .any(|it| it.family == family && matches!(it.mode, None | Some("VIP")))
            }
            Place::NodePort | Place::LocalNodePort => service.has_node_ports(),
            Place::OtherNode => false,
        };
        let by_node_port = matches!(self.place, Place::NodePort | Place::LocalNodePort);
        let number = |port: &Port| if by_node_port { port.for_nodes } else { port.number };
        let mut ports = service.ports.iter().filter(|_| is_served);
        ports.find(|port| port.transport == self.transport() && number(port) == self.at.port())
    }

    /// What a client does there: `times` attempts that each may take `limit`.
    pub(super) fn look(&self, times: u32, failures: u32, limit: Duration) -> Look {
        let attempt: Attempt = match self.how {
            How::Tcp => Tcp::to(self.at).nonblocking().timeout(limit).reset().into(),
            How::MappedTcp => Tcp::to(self.at).mapped().nonblocking().timeout(limit).reset().into(),
            How::Udp => Udp::connected(self.at).timeout(limit).into(),
            How::Datagram => Udp::to(self.at).timeout(limit).into(),
        };
        Look { attempt, times, failures }
    }
}

/// All destinations for a client. Each is there once.
pub(super) fn targets(services: &BTreeMap<u8, Service>, client: Client) -> Vec<Target> {
    let mut all = Vec::new();
    for service in services.values() {
        for (family, node_ip) in NODE_IPS.into_iter().enumerate() {
            let mut add = |at: IpAddr, port: u16, place: Place| {
                let mut hows = vec![How::Tcp, How::Udp, How::Datagram];
                if family == 0 && place == Place::ClusterIp {
                    hows.push(How::MappedTcp);
                }
                let to_target = |how| Target { at: (at, port).into(), how, service: service.index, place };
                all.extend(hows.into_iter().map(to_target));
            };
            for port in service.past_ports.iter().copied().chain([UNUSED_PORT]) {
                add(service.cluster_ip(family), port, Place::ClusterIp);
                add(service.external_ip(family), port, Place::ExternalIp);
                add(service.balanced_ip(family), port, Place::Balanced);
            }
            for port in service.past_node_ports.iter().copied() {
                add(node_ip, port, Place::NodePort);
                if client == Client::Node {
                    add(loopback(family), port, Place::LocalNodePort);
                }
            }
            if let Some(port) = service.past_node_ports.first().filter(|_| client != Client::Outside) {
                add(other_node(family), *port, Place::OtherNode);
            }
        }
    }
    all
}

fn loopback(family: usize) -> IpAddr {
    if family == 0 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

fn other_node(family: usize) -> IpAddr {
    if family == 0 {
        Ipv4Addr::new(192, 168, 50, 2).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x192, 0x168, 0x50, 0, 0, 0, 2).into()
    }
}
