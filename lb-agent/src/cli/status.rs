//! `lb-agent status`: the agent, and what the kernel holds with or without it.

use std::collections::BTreeSet;

use anyhow::bail;
use lb_common::abi::{Addr, Address, Config, Reason, maps, meta};
use serde::Serialize;

use super::{
    LookArgs, agent, cgroup, exemptions,
    pinned::{self, MapState, Pinned},
    print,
    served::Served,
    table::{Table, section},
};
use crate::{
    config::socket_lb_words,
    datapath::{PROGRAMS, host},
    maps::{Array as _, Table as _, read},
    observe::Status,
    owner::Progress,
};

/// Everything that is shown.
#[derive(Debug, Serialize)]
struct Overview {
    pin_dir: String,
    socket: String,
    /// Null if none answers.
    agent: Option<Status>,
    /// Why none answers.
    agent_error: Option<String>,
    programs: Vec<ProgramRow>,
    maps: Vec<MapRow>,
    /// Null if no maps are pinned.
    node: Option<Switches>,
    reasons: Vec<ReasonRow>,
}

/// A program and its link.
#[derive(Debug, Serialize)]
struct ProgramRow {
    name: &'static str,
    /// A link is pinned, and the kernel says that it leads to a cgroup.
    attached: bool,
    program_id: Option<u32>,
    cgroup_id: Option<u64>,
    cgroup: Option<String>,
}

/// A map.
#[derive(Debug, Serialize)]
struct MapRow {
    name: &'static str,
    pinned: bool,
    /// Entries, where they can be counted.
    used: Option<u64>,
    capacity: Option<u32>,
    bytes: Option<u64>,
}

/// The node's switches and the state of its maps.
#[derive(Debug, Serialize)]
struct Switches {
    layout: u64,
    /// `None` for maps of an agent that did not say it.
    agent_version: Option<String>,
    revision: u64,
    /// Lowest and highest programmed NodePort.
    node_ports: Option<[u16; 2]>,
    socket_lb: Vec<&'static str>,
    /// Cookies of the namespaces that are left alone.
    exempt_netns: Vec<u64>,
}

/// A counter.
#[derive(Debug, Serialize)]
struct ReasonRow {
    name: &'static str,
    count: u64,
    help: &'static str,
}

/// Shows the agent, its programs, maps and counters.
pub(super) fn run(look: &LookArgs) -> anyhow::Result<()> {
    let dir = &look.pins.pin_dir;
    let pinned = Pinned::find(dir)?;
    let (agent, agent_error) = match agent::status(look) {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    if let (None, Some(error)) = (&pinned, &agent_error) {
        bail!("{}; {error}", pinned::nothing_pinned(dir));
    }
    let node = pinned.as_ref().map(node).transpose()?;
    let overview = Overview {
        pin_dir: dir.display().to_string(),
        socket: look.socket.socket.display().to_string(),
        agent,
        agent_error,
        programs: PROGRAMS.into_iter().map(|at| program(look, at.name)).collect::<anyhow::Result<_>>()?,
        maps: pinned.as_ref().map(|pinned| map_rows(pinned, node.as_ref())).transpose()?.unwrap_or_default(),
        node,
        reasons: pinned.as_ref().map(reasons).transpose()?.unwrap_or_default(),
    };
    print(&look.output, &overview, render)
}

fn program(look: &LookArgs, name: &'static str) -> anyhow::Result<ProgramRow> {
    let link = pinned::link(&look.pins.pin_dir, name)?;
    let cgroup_id = link.map(|link| link.cgroup).filter(|id| *id != 0);
    let folder = cgroup_id.and_then(|id| cgroup::find(&host::cgroup(None).ok()?, id));
    Ok(ProgramRow {
        name,
        attached: cgroup_id.is_some(),
        program_id: link.map(|link| link.program),
        cgroup_id,
        cgroup: folder.map(|path| path.display().to_string()),
    })
}

fn node(pinned: &Pinned) -> anyhow::Result<Switches> {
    let config: Config = read(&pinned.array(maps::CONFIG)?, 0);
    let has_node_ports = config.may_be_node_port(config.node_port_max);
    Ok(Switches {
        layout: pinned.meta.load(meta::LAYOUT_AT as usize),
        agent_version: agent_version(pinned.meta.load(meta::AGENT_VERSION_AT as usize)),
        revision: pinned.meta.load(meta::REVISION_AT as usize),
        node_ports: has_node_ports.then_some([config.node_port_min, config.node_port_max]),
        socket_lb: socket_lb_words(config.socket_lb),
        exempt_netns: exemptions::cookies(pinned)?,
    })
}

/// What [`meta::version`] packed; nothing if nobody has.
fn agent_version(word: u64) -> Option<String> {
    let part = |shift: u32| word >> shift & 0xffff;
    (word != 0).then(|| format!("{}.{}.{}", part(32), part(16), part(0)))
}

fn map_rows(pinned: &Pinned, node: Option<&Switches>) -> anyhow::Result<Vec<MapRow>> {
    let served = Served::read(pinned)?;
    let addresses = pinned.table::<Addr, Address>(maps::ADDRESSES)?.dump()?.len();
    let services: BTreeSet<u32> =
        served.frontends.iter().map(|(_, frontend)| frontend.service.index).collect();
    let used = |name| match name {
        maps::FRONTENDS => Some(served.frontends.len() as u64),
        maps::ADDRESSES => Some(addresses as u64),
        maps::SERVICES => Some(services.len() as u64),
        maps::SLOTS => Some(served.slots_in_runs()),
        maps::BACKENDS => Some(served.backends_in_use()),
        maps::NETNS => node.map(|node| node.exempt_netns.len() as u64),
        _ => None,
    };
    let row = |name| {
        let state = pinned.state(name)?;
        let MapState { capacity, bytes } = state.unwrap_or(MapState { capacity: None, bytes: None });
        Ok(MapRow { name, pinned: state.is_some(), used: used(name), capacity, bytes })
    };
    maps::ALL.into_iter().map(row).collect()
}

fn reasons(pinned: &Pinned) -> anyhow::Result<Vec<ReasonRow>> {
    let counts = pinned.reasons()?;
    let row = |(reason, count): (Reason, u64)| ReasonRow { name: reason.name(), count, help: reason.help() };
    Ok(counts.into_iter().map(row).collect())
}

fn render(overview: &Overview) -> String {
    let mut facts = Table::facts();
    facts.fact("pins", &overview.pin_dir);
    agent_facts(overview, &mut facts);
    node_facts(overview, &mut facts);
    let mut parts = vec![facts.render(), programs(&overview.programs)];
    if !overview.maps.is_empty() {
        parts.extend([map_table(&overview.maps), reason_table(&overview.reasons)]);
    }
    if let Some(Status { report, problems, kube_proxy, .. }) = &overview.agent {
        let left_alone: Vec<String> = report
            .left_alone
            .iter()
            .map(|left| format!("{}  {}  {}", left.service, left.address, left.interface))
            .collect();
        let others: Vec<String> = report.other_programs.iter().map(ToString::to_string).collect();
        let leftovers: Vec<String> = kube_proxy.leftovers.iter().map(ToString::to_string).collect();
        let sections = [
            section("manifests that cannot be used", problems),
            section("fields that cannot be used", &report.notices),
            section("frontends that another Service owns", &report.contested),
            section("service ports that are not programmed", &report.left_out),
            section("programs of others at these devices", &others),
            section("cluster IPs on an interface of this node, left alone", &left_alone),
            section("node port addresses that serve nothing", &report.idle_node_port_addresses),
            section(
                "left by a kube-proxy, whose rules packets meet first: see `lb-agent cleanup --kube-proxy`",
                &leftovers,
            ),
            section("before `lb-agent cleanup --kube-proxy`", &kube_proxy.warnings),
            section("not looked at for what a kube-proxy may have left", &kube_proxy.unseen),
        ];
        parts.extend(sections.into_iter().flatten());
    }
    parts.join("\n\n")
}

fn agent_facts(overview: &Overview, facts: &mut Table) {
    let Some(Status { report, .. }) = &overview.agent else {
        let why = overview.agent_error.as_deref().unwrap_or_default();
        facts.fact("agent", format!("not reached: {why}"));
        return;
    };
    let progress = match report.progress {
        Progress::Listing => "waiting until Services, EndpointSlices and its Node are listed",
        Progress::Ready => "ready",
        Progress::Failing => "failing",
    };
    facts.fact("agent", format!("{progress}, version {}, answers at {}", report.version, overview.socket));
    if let Some(error) = &report.last_error {
        facts.fact("last error", error);
    }
    facts.fact("node", &report.node);
    facts.fact("services", format!("{} listed, {} service ports programmed", report.services, report.ports));
    let refuses = if report.refuses_directly { "by the hook itself" } else { "by an address that refuses" };
    facts.fact("refusing", refuses);
    let addresses: Vec<String> = report.node_port_addresses.iter().map(ToString::to_string).collect();
    facts.fact("node ports on", none_or(&addresses));
    facts.fact("service ranges", none_or(&report.service_cidrs));
    facts.fact("pods", report.packets.clone());
    let devices: Vec<String> = report
        .devices
        .iter()
        .map(|device| {
            let xdp = device.xdp.as_ref().map_or_else(String::new, |xdp| format!(", XDP: {xdp}"));
            format!("{} ({}, {}{xdp})", device.name, device.role, device.mode)
        })
        .collect();
    facts.fact("packets served at", none_or(&devices));
    if report.put_back > 0 {
        facts.fact("programs put back", format!("{} times, see the log", report.put_back));
    }
    if !report.unserved_devices.is_empty() {
        facts.fact("packets not served at", report.unserved_devices.join("; "));
    }
}

fn node_facts(overview: &Overview, facts: &mut Table) {
    let Some(node) = &overview.node else {
        facts.fact("maps", "none pinned yet");
        return;
    };
    let by =
        node.agent_version.as_ref().map_or_else(String::new, |version| format!(", by lb-agent {version}"));
    facts.fact("maps", format!("layout {}, revision {}{by}", node.layout, node.revision));
    let sockets = if node.socket_lb.is_empty() { "none".to_owned() } else { node.socket_lb.join(", ") };
    facts.fact("sockets served", sockets);
    let ports = match node.node_ports {
        None => "none".to_owned(),
        Some([min, max]) if min == max => min.to_string(),
        Some([min, max]) => format!("between {min} and {max}"),
    };
    facts.fact("node ports", ports);
    let exempt = match node.exempt_netns.len() {
        0 => "none".to_owned(),
        count => format!("{count}, see `lb-agent netns list`"),
    };
    facts.fact("exempt namespaces", exempt);
}

fn programs(programs: &[ProgramRow]) -> String {
    let mut table = Table::new(["PROGRAM", "ID", "ATTACHED TO"]);
    for program in programs {
        let place = match (program.program_id, program.cgroup_id, &program.cgroup) {
            (None, ..) => "nothing: no link is pinned".to_owned(),
            // The kernel tells no difference.
            (_, None, _) => {
                "nothing: its link was detached, or its cgroup is gone; restart lb-agent, which attaches anew"
                    .to_owned()
            }
            (_, Some(_), Some(path)) => path.clone(),
            (_, Some(id), None) => format!("cgroup {id}"),
        };
        table.row([program.name.to_owned(), number(program.program_id), place]);
    }
    table.render()
}

fn map_table(rows: &[MapRow]) -> String {
    let mut table = Table::new(["MAP", "USED", "CAPACITY", "KIB"]);
    for row in rows {
        let name = if row.pinned { row.name.to_owned() } else { format!("{} (not pinned)", row.name) };
        table.row([name, number(row.used), number(row.capacity), number(row.bytes.map(kib))]);
    }
    let total = rows.iter().filter_map(|row| row.bytes).sum();
    table.row(["total".to_owned(), String::new(), String::new(), kib(total).to_string()]);
    table.render()
}

fn reason_table(rows: &[ReasonRow]) -> String {
    let mut table = Table::new(["COUNTER", "COUNT", "MEANING"]);
    for row in rows {
        table.row([row.name.to_owned(), row.count.to_string(), row.help.to_owned()]);
    }
    table.render()
}

/// The items in one line.
fn none_or(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// A number, or nothing.
fn number(value: Option<impl ToString>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

const fn kib(bytes: u64) -> u64 {
    bytes.div_ceil(1024)
}
