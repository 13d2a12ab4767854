//! What packets meet: the maps of a loaded object, filled by hand.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie};
use aya::{Ebpf, Pod};
use lb_common::abi::{PortList, RangeKey};
use lb_common::host::MemTables;

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
