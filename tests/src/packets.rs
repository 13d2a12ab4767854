//! What packets meet: the maps of a loaded object, filled by hand.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie};
use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader, Pod};
use lb_agent::datapath::OBJECT;
use lb_common::abi::{
    Addr, Backend, BackendId, BackendState, Frontend, FrontendKey, FrontendKind, L4Addr, PortList, Proto,
    RangeKey, Run, Service, ServiceId, Slot,
};
use lb_common::host::MemTables;

use crate::Netns;

/// Writes what a world holds into the maps of an object, but for flows.
///
/// # Errors
/// Those of the maps.
pub fn fill(ebpf: &mut Ebpf, world: &MemTables) -> Result<()> {
    table(ebpf, "lb_frontends", &world.frontends)?;
    table(ebpf, "lb_addresses", &world.addresses)?;
    table(ebpf, "lb_devices", &world.devices)?;
    array(ebpf, "lb_services", world.services.iter().map(|(id, service)| (id.index, *service)))?;
    array(ebpf, "lb_slots", world.slots.iter().map(|(at, slot)| (*at, *slot)))?;
    array(ebpf, "lb_backends", world.backends.iter().map(|(id, backend)| (id.index, *backend)))?;
    array(ebpf, "lb_config", world.config.into_iter().map(|config| (0, config)))?;
    let lists = world.ports.chunks(4).map(PortList::of);
    array(ebpf, "lb_ports", (0..).zip(lists))?;
    let mut ranges: LpmTrie<_, RangeKey, u32> =
        ebpf.map_mut("lb_src_ranges").context("no lb_src_ranges")?.try_into()?;
    for (service, client) in &world.allowed {
        let key = RangeKey { service: *service, addr: client.octets };
        ranges.insert(&Key::new(RangeKey::BITS, key), 1, 0)?;
    }
    Ok(())
}

/// Puts one backend's port 8080 behind port 80 of a cluster IP and a NodePort of the same family, for TCP and UDP; no backend where
/// `backend` is the unspecified address. `here` says whether it is on this node.
pub fn serve(world: &mut MemTables, id: u32, (vip, port): (IpAddr, u16), backend: IpAddr, here: bool) {
    let service = ServiceId { index: id };
    let owner = BackendId { index: id };
    let addr = Addr::from(backend);
    world.slots.insert(id, Slot { addr, port: 8080, backend: owner, generation: 1, ..Slot::FREE });
    let runs = Backend::IN_CLUSTER | if here { Backend::HERE } else { 0 };
    let state = BackendState::Active as u8;
    world.backends.insert(owner, Backend { generation: 1, state, runs, pad: 0 });
    let run = Run { base: id, count: u16::from(!backend.is_unspecified()), generation: 1 };
    world.services.insert(service, Service { cluster: run, local: run, ..Service::FREE });
    let vip = Addr::from(vip);
    let mut accept = |key: FrontendKey, kind| world.frontends.insert(key, Frontend::new(key, service, kind));
    for proto in [Proto::TCP, Proto::UDP] {
        for (addr, port, kind) in
            [(vip, 80, FrontendKind::ClusterIp), (vip.any(), port, FrontendKind::NodePort)]
        {
            accept(FrontendKey::new(L4Addr { addr, port }, proto), kind);
        }
    }
    accept(FrontendKey::other_ports(vip), FrontendKind::OtherPorts);
}

/// The object with both programs at tc loaded, and tables for some thousand flows.
///
/// # Errors
/// Those of the kernel.
pub fn load() -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.override_global("LB_HAS_COARSE_CLOCK", &0_u32, true);
    for map in ["lb_new4", "lb_new6", "lb_flows4", "lb_flows6", "lb_frags"] {
        loader.map_max_entries(map, 4096);
    }
    let mut ebpf = loader.load(OBJECT)?;
    for name in [INGRESS, EGRESS] {
        program(&mut ebpf, name)?.load()?;
    }
    Ok(ebpf)
}

const INGRESS: &str = "lb_tc_ingress";
const EGRESS: &str = "lb_tc_egress";

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no {name}"))?.try_into()?)
}

/// Attaches both programs to a device, by links (`tcx`) or by a qdisc.
///
/// # Errors
/// Those of the kernel.
pub fn attach(netns: &Netns, ebpf: &mut Ebpf, device: &str, tcx: bool) -> Result<()> {
    if !tcx {
        netns.run(|| qdisc_add_clsact(device).map_err(anyhow::Error::from))?;
        return attach_filters(netns, ebpf, device, 1);
    }
    netns.run(|| {
        for (name, at) in [(INGRESS, TcAttachType::Ingress), (EGRESS, TcAttachType::Egress)] {
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            program(ebpf, name)?.attach_with_options(device, at, options)?;
        }
        Ok(())
    })
}

/// Attaches both programs to a device that has a clsact qdisc, as filters of this priority: the higher, the later.
///
/// # Errors
/// Those of the kernel.
pub fn attach_filters(netns: &Netns, ebpf: &mut Ebpf, device: &str, priority: u16) -> Result<()> {
    netns.run(|| {
        for (name, at) in [(INGRESS, TcAttachType::Ingress), (EGRESS, TcAttachType::Egress)] {
            let options = TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() });
            program(ebpf, name)?.attach_with_options(device, at, options)?;
        }
        Ok(())
    })
}

fn table<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &str, entries: &BTreeMap<K, V>) -> Result<()> {
    let map = ebpf.map_mut(name).with_context(|| format!("no {name}"))?;
    let mut map: HashMap<_, K, V> = map.try_into()?;
    for (key, value) in entries {
        map.insert(key, value, 0)?;
    }
    Ok(())
}

fn array<V: Pod>(ebpf: &mut Ebpf, name: &str, values: impl Iterator<Item = (u32, V)>) -> Result<()> {
    let map = ebpf.map_mut(name).with_context(|| format!("no {name}"))?;
    let mut map: Array<_, V> = map.try_into()?;
    for (at, value) in values {
        map.set(at, value, 0)?;
    }
    Ok(())
}
