//! What the maps hold, as text: one fact per line, sorted, the same for equal contents.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use lb_agent::maps::{Array, read};
use lb_common::abi::{
    Addr, Backend, BackendState, Config, FrontendKind, PacketLb, Run, Service, ServiceFlags, Slot, Words as _,
};

use super::Driver;
use crate::invariants::slots;

/// Frontends, services with their ports, slots that a run contains, backends that are not free, the range of NodePorts,
/// and what was not programmed.
///
/// # Errors
/// Those of the maps.
pub fn dump(driver: &Driver) -> Result<String> {
    let reconciler = &driver.reconciler;
    let maps = reconciler.maps();
    let mut text = String::new();
    for (key, value) in maps.frontends.dump()? {
        let kind = FrontendKind::from_number(value.kind).map_or("?", FrontendKind::name);
        let at = if key.is_other_ports() {
            format!("{} but for these", key.addr)
        } else {
            format!("{}/{}", key.at(), key.proto)
        };
        writeln!(text, "FE   {at:<24} {kind:<12} {}", value.service.index)?;
    }
    services(&mut text, driver)?;
    for id in 0..maps.backends.entries(1) {
        backend(&mut text, &*maps.backends, id)?;
    }
    let config = Config::from_words([0, 1, 2, 3, 4, 5].map(|word| maps.config.load(word)));
    if config.packets.has(PacketLb::MAGLEV) {
        writeln!(text, "CFG  any segment may open a flow")?;
    }
    if config.node_port_max != 0 {
        writeln!(text, "CFG  NodePorts {}..={}", config.node_port_min, config.node_port_max)?;
    }
    for contested in driver.contested.values().flatten() {
        let frontend = contested.frontend;
        let address = if frontend.addr == Addr::ANY_V4 {
            "every address".to_owned()
        } else {
            frontend.addr.to_string()
        };
        writeln!(
            text,
            "WAIT {} {:?} for {address} port {}: {} has it",
            contested.port.service, contested.port.port, frontend.port, contested.owner
        )?;
    }
    for (port, no_room) in &driver.left_out {
        writeln!(text, "OUT  {} {:?}: {no_room}", port.service, port.port)?;
    }
    Ok(text)
}

/// Services with their ports, and who has which slot of their runs.
fn services(text: &mut String, driver: &Driver) -> Result<()> {
    let maps = driver.reconciler.maps();
    let mut used: BTreeMap<u32, Slot> = BTreeMap::new();
    let mut tables = Vec::new();
    for (id, port) in driver.reconciler.programmed() {
        let service: Service = read(&*maps.services, id);
        let name = format!("{} {:?} {} {}", port.service, port.port, port.protocol, port.family);
        writeln!(text, "SVC  {id:<3} {name:<36} {}", runs(&service))?;
        for run in [service.cluster, service.local] {
            if service.flags.has(ServiceFlags::MAGLEV) && run.count > 1 {
                tables.push(run);
            } else {
                used.extend((run.base..).zip(slots(&*maps.slots, run)));
            }
        }
    }
    for (index, slot) in used {
        writeln!(text, "SLOT {index:<3} {:<24} {}", slot.at(), slot.backend.index)?;
    }
    tables.sort_unstable();
    tables.dedup_by_key(|run| run.base);
    for run in tables {
        table(text, &*maps.slots, run)?;
    }
    Ok(())
}

/// Runs, policy and affinity of a service. An unused run repeats the used one.
fn runs(service: &Service) -> String {
    let run = |run: Run| match run {
        Run { count: 0, .. } if run.is_elsewhere() => "elsewhere".to_owned(),
        Run { count: 0, .. } => "none".to_owned(),
        Run { base, count, .. } => format!("{base}+{count}"),
    };
    let mut text = format!("cluster {} local {}", run(service.cluster), run(service.local));
    if service.flags.has(ServiceFlags::INTERNAL_LOCAL) {
        text.push_str(" internal-local");
    }
    if service.flags.has(ServiceFlags::MAGLEV) {
        text.push_str(" maglev");
    }
    if service.flags.has(ServiceFlags::ROUND_ROBIN) {
        text.push_str(" round-robin");
    }
    if service.flags.has(ServiceFlags::RESTRICTED) {
        let host = service.flags.has(ServiceFlags::HOST_ALLOWED);
        text.push_str(if host { " restricted, host allowed" } else { " restricted" });
    }
    match service.affinity_s {
        0 => text,
        seconds => format!("{text} affinity {seconds} s"),
    }
}

/// A Maglev table: how many slots each backend has, and the first slots.
fn table(text: &mut String, array: &dyn Array, run: Run) -> Result<()> {
    let mut shares: BTreeMap<Slot, usize> = BTreeMap::new();
    for slot in slots(array, run) {
        *shares.entry(slot).or_default() += 1;
    }
    for (slot, share) in shares {
        writeln!(
            text,
            "SHARE {}+{} {share:<5} {:<18} {}",
            run.base,
            run.count,
            slot.at(),
            slot.backend.index
        )?;
    }
    let first: Vec<String> = slots(array, run).take(16).map(|slot| slot.backend.index.to_string()).collect();
    writeln!(text, "TABLE {}+{} begins {}", run.base, run.count, first.join(" "))?;
    Ok(())
}

fn backend(text: &mut String, backends: &dyn Array, id: u32) -> Result<()> {
    let Backend { state, runs, .. } = read(backends, id);
    let state = match state {
        free if free == BackendState::Free as u8 => return Ok(()),
        active if active == BackendState::Active as u8 => "active",
        _ => "terminating",
    };
    let lists: Vec<&str> = [(Backend::IN_CLUSTER, "cluster"), (Backend::IN_LOCAL, "local")]
        .into_iter()
        .filter(|(bit, _)| runs & bit != 0)
        .map(|(_, name)| name)
        .collect();
    writeln!(text, "BE   {id:<3} {state} {}", lists.join(" "))?;
    Ok(())
}
