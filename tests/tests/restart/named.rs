//! Services for examples, one line each.

use std::net::{IpAddr, SocketAddr};

use lb_agent::compile::{Frontend, FrontendKind, Policies, PortEntries, PortKey, Target};
use lb_agent::model::{Algorithm, Family, Protocol, ServiceName};
use lb_agent::reconcile::Desired;
use lb_common::abi::{FrontendKey, L4Addr, Proto};

/// A Service with TCP ports.
#[derive(Clone)]
pub(crate) struct Named(Desired);

impl Named {
    /// A Service without ports.
    pub(crate) fn new(name: &str, created_s: i64) -> Self {
        Self(Desired { name: ServiceName::new("ns", name), created_s, ports: Vec::new() })
    }

    /// Adds a port with frontends (`10.0.0.1:80`, or `0.0.0.0:30000` for a NodePort), all of the family of the first one,
    /// and a number of endpoints.
    pub(crate) fn port(mut self, name: &str, frontends: &[&str], endpoints: u16) -> Self {
        let family = frontends.first().map_or(Family::V4, |first| {
            let at: SocketAddr = first.parse().unwrap();
            Family::of(&at.ip())
        });
        let frontends = frontends.iter().enumerate().map(|(at, text)| {
            let at_addr: SocketAddr = text.parse().unwrap();
            let kind = match at {
                _ if at_addr.ip().is_unspecified() => FrontendKind::NodePort,
                0 => FrontendKind::ClusterIp,
                _ => FrontendKind::ExternalIp,
            };
            Frontend { at: at_addr, kind }
        });
        let target = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let addr: IpAddr = match family {
                Family::V4 => [10, 1, high, low].into(),
                Family::V6 => [0xfd00, 1, 0, 0, 0, 0, 0, number].into(),
            };
            Target { at: SocketAddr::new(addr, 8080), terminating: false, here: false }
        };
        self.0.ports.push(PortEntries {
            key: PortKey { service: self.0.name.clone(), port: name.into(), protocol: Protocol::Tcp, family },
            frontends: frontends.collect(),
            cluster: (0..endpoints).map(target).collect(),
            local: Vec::new(),
            draining: Vec::new(),
            policies: Policies { has_any: endpoints != 0, ..Policies::default() },
            ranges: Vec::new(),
            affinity_s: 0,
            algorithm: Algorithm::Random,
        });
        self
    }

    /// Another algorithm for all ports.
    pub(crate) fn by(mut self, algorithm: Algorithm) -> Self {
        for port in &mut self.0.ports {
            port.algorithm = algorithm;
        }
        self
    }

    /// For the reconciler.
    pub(crate) fn desired(&self) -> Desired {
        self.0.clone()
    }

    /// Its name.
    pub(crate) fn name(&self) -> ServiceName {
        self.0.name.clone()
    }
}

/// The key of a TCP frontend.
pub(crate) fn key(text: &str) -> FrontendKey {
    FrontendKey::new(L4Addr::from(text.parse::<SocketAddr>().unwrap()), Proto::TCP)
}
