//! Synthetic clusters: N Services, each with the same number of endpoints, as decoded API objects.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    serde_json::{from_value, json},
};
use lb_agent::{
    k8s,
    model::{Change, ClusterState, Event, Names, ServiceName},
    reconcile::{Desired, Outcome, Reconciler},
};

/// The objects of a cluster.
pub struct Objects {
    /// Services `s0`, `s1`, ...
    pub services: Vec<Service>,
    /// One slice per Service.
    pub slices: Vec<EndpointSlice>,
}

impl Objects {
    /// `services` Services of one TCP port, each with `endpoints` ready endpoints.
    pub fn new(services: u32, endpoints: u32) -> Result<Self> {
        let mut objects = Self { services: Vec::new(), slices: Vec::new() };
        for number in 0..services {
            objects.services.push(service(number).context("a Service is well formed")?);
            objects.slices.push(slice(number, endpoints, 0).context("a slice is well formed")?);
        }
        Ok(objects)
    }
}

/// Service number `number`, at 10.96.0.0 plus its number.
pub fn service(number: u32) -> serde_json::Result<Service> {
    let addr = Ipv4Addr::from(0x0a60_0000 + number);
    from_value(json!({
        "metadata": {"name": format!("s{number}"), "namespace": "bench", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "clusterIP": addr, "clusterIPs": [addr], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        },
    }))
}

/// The slice of Service `number`; `first` shifts its endpoints by as many addresses.
pub fn slice(number: u32, endpoints: u32, first: u32) -> serde_json::Result<EndpointSlice> {
    let endpoints: Vec<_> = (first..first + endpoints)
        .map(|endpoint| {
            let addr = Ipv4Addr::from(0x0b00_0000_u32.wrapping_add(number.wrapping_mul(64)).wrapping_add(endpoint));
            json!({"addresses": [addr], "conditions": {"ready": true}, "nodeName": format!("node-{}", endpoint % 7)})
        })
        .collect();
    from_value(json!({
        "metadata": {
            "name": format!("s{number}-1"), "namespace": "bench",
            "labels": {"kubernetes.io/service-name": format!("s{number}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints,
    }))
}

/// The agent's pipeline without its sources: decoded objects in, maps out.
pub struct Pipeline {
    state: ClusterState,
    names: Names,
    touched: BTreeSet<ServiceName>,
    reconciler: Reconciler,
}

/// Services planned together, as the owner does.
const CHUNK: usize = 1000;

impl Pipeline {
    /// An empty cluster over these maps.
    pub fn new(reconciler: Reconciler) -> Self {
        Self {
            state: ClusterState::new("bench".into()),
            names: Names::default(),
            touched: BTreeSet::new(),
            reconciler,
        }
    }

    /// Converts and takes in all objects.
    pub fn take_in(&mut self, objects: &Objects) -> Result<()> {
        objects.services.iter().try_for_each(|service| self.service(service))?;
        objects.slices.iter().try_for_each(|slice| self.slice(slice))
    }

    /// Converts and takes in a Service.
    pub fn service(&mut self, object: &Service) -> Result<()> {
        let service = k8s::service(object, &mut self.names)?;
        self.state.apply(Event::Service(Change::Apply(service)), &mut self.touched);
        Ok(())
    }

    /// Converts and takes in a slice.
    pub fn slice(&mut self, object: &EndpointSlice) -> Result<()> {
        let slice = k8s::slice(object, &mut self.names)?;
        self.state.apply(Event::Slice(Change::Apply(slice)), &mut self.touched);
        Ok(())
    }

    /// Compiles and programs whatever was touched.
    pub fn program(&mut self) -> Result<usize> {
        let mut writes = 0;
        while !self.touched.is_empty() {
            let chunk: Vec<ServiceName> =
                core::iter::from_fn(|| self.touched.pop_first()).take(CHUNK).collect();
            let desired: Vec<Desired> = chunk
                .into_iter()
                .map(|name| {
                    let created_s = self.state.service(&name).map_or(i64::MAX, |service| service.created_s);
                    let ports = self.state.compile(&name).ports;
                    Desired { name, created_s, ports }
                })
                .collect();
            let Outcome { writes: done, left_out, .. } = self.reconciler.apply(&desired)?;
            anyhow::ensure!(
                left_out.is_empty(),
                "the maps are too small for {} ports, among them {:?}",
                left_out.len(),
                left_out.first()
            );
            writes += done;
        }
        Ok(writes)
    }
}

/// The last Service of a cluster of `services`.
pub fn last_address(services: u32) -> IpAddr {
    Ipv4Addr::from(0x0a60_0000 + services - 1).into()
}
