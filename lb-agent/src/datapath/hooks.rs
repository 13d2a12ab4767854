//! What runs at the hooks of a device, in the order in which packets meet it: our programs, and those of others, which are never touched.
//!
//! A packet that comes meets XDP, then the links of tcx in their order, then the filters of a clsact or ingress qdisc by their priority.

use core::fmt;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use aya::{
    Ebpf,
    programs::{Program, loaded_programs},
};
use serde::{Deserialize, Serialize};

use crate::{
    maps::sys::{self, TCX_EGRESS, TCX_INGRESS},
    netlink::{Attributes, Channel, NETLINK_ROUTE, Request, attribute, text},
};

/// `RTM_GETLINK`, `RTM_GETTFILTER` (include/uapi/linux/rtnetlink.h).
const RTM_GETLINK: u16 = 18;
const RTM_GETTFILTER: u16 = 46;
/// Bytes of `struct ifinfomsg` and `struct tcmsg`.
const IFINFOMSG: usize = 16;
const TCMSG: usize = 20;
/// `IFLA_XDP`, and what is in it (include/uapi/linux/if_link.h): the program, or one for each way of attaching.
const IFLA_XDP: u16 = 43;
const IFLA_XDP_IDS: [u16; 4] = [4, 5, 6, 7];
/// `TCA_KIND`, `TCA_OPTIONS`
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// `TCA_BPF_NAME`, `TCA_BPF_ID` (include/uapi/linux/pkt_cls.h).
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// Both sides of a clsact qdisc: `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`.
const PARENTS: [(Hook, u32); 2] = [(Hook::Ingress, 0xffff_fff2), (Hook::Egress, 0xffff_fff3)];

/// Where programs see packets of a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// What comes, before the kernel has made anything of it.
    Xdp,
    /// What comes.
    Ingress,
    /// What leaves.
    Egress,
}

/// How a program is attached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// At XDP.
    Xdp,
    /// By a link.
    Tcx,
    /// As a filter of a qdisc.
    Filter,
}

/// A program at a hook, or a filter without one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Found {
    /// Id of the program; nothing for a filter of another kind.
    pub id: Option<u32>,
    /// What its qdisc calls it, or the kind of the filter.
    pub name: Option<String>,
    /// How it is attached.
    pub by: By,
}

/// What runs at each hook of a device.
pub type Hooks = BTreeMap<Hook, Vec<Found>>;

/// A program of somebody else at a device whose packets are served.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Other {
    /// Name of the device.
    pub device: String,
    /// Where.
    pub hook: Hook,
    /// How it is attached.
    pub by: By,
    /// What it is called.
    pub name: String,
    /// Its id; nothing for a filter that is no program.
    pub id: Option<u32>,
    /// It sees packets before the program of this agent, which does not see those that it keeps.
    pub before: bool,
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, hook, by, name, id, before } = self;
        let word = |word: &dyn fmt::Debug| format!("{word:?}").to_lowercase();
        write!(f, "{device} {}: {name} (", word(hook))?;
        if let Some(id) = id {
            write!(f, "program {id}, ")?;
        }
        write!(f, "{}) {} ours", word(by), if *before { "before" } else { "after" })
    }
}

/// Asks the kernel what runs at devices.
#[derive(Debug)]
pub struct Looker {
    channel: Channel,
    /// Of programs of others, by id.
    names: BTreeMap<u32, String>,
}

impl Looker {
    /// In the network namespace of this thread.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> io::Result<Self> {
        Ok(Self { channel: Channel::open(NETLINK_ROUTE)?, names: BTreeMap::new() })
    }

    /// What runs at a device.
    ///
    /// # Errors
    /// The kernel's answer; `ENODEV` if the device is gone.
    pub fn look(&self, index: u32) -> io::Result<Hooks> {
        let mut hooks = Hooks::new();
        let xdp = |id| Found { id: Some(id), name: None, by: By::Xdp };
        hooks.insert(Hook::Xdp, self.xdp(index)?.into_iter().map(xdp).collect());
        for (hook, attach_type) in [(Hook::Ingress, TCX_INGRESS), (Hook::Egress, TCX_EGRESS)] {
            let ids = match sys::device_programs(index, attach_type) {
                // No such hooks in this kernel.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Vec::new(),
                ids => ids?,
            };
            let tcx = |id| Found { id: Some(id), name: None, by: By::Tcx };
            hooks.insert(hook, ids.into_iter().map(tcx).collect());
        }
        for (hook, parent) in PARENTS {
            hooks.entry(hook).or_default().extend(self.filters(index, parent)?);
        }
        Ok(hooks)
    }

    fn xdp(&self, index: u32) -> io::Result<BTreeSet<u32>> {
        let mut fixed = [0; IFINFOMSG];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut ids = BTreeSet::new();
        self.channel.ask(&Request::new(RTM_GETLINK, &fixed, &Attributes::default()), |body| {
            let xdp = attribute(body.get(IFINFOMSG..).unwrap_or_default(), IFLA_XDP).unwrap_or_default();
            ids.extend(IFLA_XDP_IDS.into_iter().filter_map(|kind| number(attribute(xdp, kind)?)));
        })?;
        Ok(ids)
    }

    fn filters(&self, index: u32, parent: u32) -> io::Result<Vec<Found>> {
        let mut fixed = [0; TCMSG];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[12..16].copy_from_slice(&parent.to_ne_bytes());
        let mut filters = Vec::new();
        self.channel.list(&Request::new(RTM_GETTFILTER, &fixed, &Attributes::default()), |body| {
            filters.extend(filter(body));
        })?;
        // The kernel lists them by chain; those of equal priority stay in its order.
        filters.sort_by_key(|(priority, _)| *priority);
        Ok(filters.into_iter().map(|(_, found)| found).collect())
    }

    /// Finds the names of programs that are not known yet; those that are gone are forgotten.
    fn learn(&mut self, ids: &BTreeSet<u32>) {
        self.names.retain(|id, _| ids.contains(id));
        if ids.iter().all(|id| self.names.contains_key(id)) {
            return;
        }
        // Without CAP_SYS_ADMIN there are none.
        let named = loaded_programs().filter_map(Result::ok).filter(|found| ids.contains(&found.id()));
        self.names.extend(named.filter_map(|found| Some((found.id(), found.name_as_str()?.to_owned()))));
    }

    /// Programs of others at devices, each with its name and what runs at it; `ours` are the ids of our programs.
    pub fn others(&mut self, devices: &BTreeMap<String, Hooks>, ours: &BTreeSet<u32>) -> Vec<Other> {
        let all = devices.values().flat_map(BTreeMap::values).flatten();
        self.learn(&all.filter_map(|found| found.id).filter(|id| !ours.contains(id)).collect());
        devices.iter().flat_map(|(device, hooks)| others(device, hooks, ours, &self.names)).collect()
    }
}

/// A filter with its priority, from a message of the kernel.
fn filter(body: &[u8]) -> Option<(u32, Found)> {
    let attributes = body.get(TCMSG..)?;
    // Each priority comes once by itself, before its filters.
    let handle = number(body.get(8..12)?)?;
    let info = number(body.get(16..20)?)?;
    let options = attribute(attributes, TCA_OPTIONS).filter(|_| handle != 0)?;
    let kind = text(attributes, TCA_KIND)?;
    let is_program = kind == "bpf";
    let id = attribute(options, TCA_BPF_ID).filter(|_| is_program).and_then(number);
    let name = if is_program { text(options, TCA_BPF_NAME) } else { Some(kind) };
    Some((info >> 16, Found { id, name: name.map(str::to_owned), by: By::Filter }))
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

/// Whether a program of ours is at a hook.
pub fn has(hooks: &Hooks, hook: Hook, ours: &BTreeSet<u32>) -> bool {
    hooks.get(&hook).is_some_and(|found| found.iter().any(|found| is_one(found, ours)))
}

fn is_one(found: &Found, ours: &BTreeSet<u32>) -> bool {
    found.id.is_some_and(|id| ours.contains(&id))
}

/// The programs of others at a device.
fn others(device: &str, hooks: &Hooks, ours: &BTreeSet<u32>, names: &BTreeMap<u32, String>) -> Vec<Other> {
    let of = |(hook, programs): (&Hook, &Vec<Found>)| {
        // At XDP, whatever is not ours comes before what is at the qdiscs.
        let own = programs.iter().position(|found| is_one(found, ours)).unwrap_or(programs.len());
        let other = |(at, found): (usize, &Found)| Other {
            device: device.to_owned(),
            hook: *hook,
            by: found.by,
            name: found
                .id
                .and_then(|id| names.get(&id).cloned())
                .or_else(|| found.name.clone())
                .unwrap_or_else(|| "a program without a name".to_owned()),
            id: found.id,
            before: at < own,
        };
        let foreign = programs.iter().enumerate().filter(|(_, found)| !is_one(found, ours));
        foreign.map(other).collect::<Vec<_>>()
    };
    hooks.iter().flat_map(of).collect()
}

/// Ids of the programs of an object that are loaded and may be at a device.
pub fn own_ids(ebpf: &Ebpf) -> BTreeSet<u32> {
    let id = |program: &Program| match program {
        Program::SchedClassifier(program) => program.info().ok().map(|info| info.id()),
        Program::Xdp(program) => program.info().ok().map(|info| info.id()),
        _ => None,
    };
    ebpf.programs().filter_map(|(_, program)| id(program)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filter as the kernel tells of it.
    fn message(handle: u32, priority: u32, kind: &str, options: &Attributes) -> Vec<u8> {
        let mut body = vec![0; 8];
        for word in [handle, 0xffff_fff2, priority << 16 | 0x0300] {
            body.extend(word.to_ne_bytes());
        }
        let attributes = Attributes::default().text(TCA_KIND, kind).bytes(TCA_OPTIONS, options.as_bytes());
        body.extend(attributes.as_bytes());
        body
    }

    #[test]
    fn filters_are_programs_with_an_id_or_of_another_kind() {
        let options =
            Attributes::default().text(TCA_BPF_NAME, "x.o:[tc]").bytes(TCA_BPF_ID, &7_u32.to_ne_bytes());
        let program = Found { id: Some(7), name: Some("x.o:[tc]".into()), by: By::Filter };
        assert_eq!(filter(&message(1, 3, "bpf", &options)), Some((3, program)));
        let flower = Found { id: None, name: Some("flower".into()), by: By::Filter };
        assert_eq!(filter(&message(1, 9, "flower", &options)), Some((9, flower)));
        assert_eq!(filter(&message(0, 3, "bpf", &Attributes::default())), None, "the priority itself");
        let whole = message(1, 3, "bpf", &options);
        for length in 0..whole.len() {
            // No piece of it is a fault of ours.
            let _ = filter(&whole[..length]);
        }
    }

    #[test]
    fn whoever_comes_first_is_told() {
        let at = |id, by| Found { id: Some(id), name: None, by };
        let hooks = Hooks::from([
            (Hook::Xdp, vec![at(1, By::Xdp)]),
            (Hook::Ingress, vec![at(2, By::Tcx), at(10, By::Tcx), at(3, By::Filter)]),
            (Hook::Egress, vec![at(11, By::Tcx), at(3, By::Filter)]),
        ]);
        let names = BTreeMap::from([(1, "xdp_firewall".to_owned()), (2, "mesh".to_owned())]);
        let ours = BTreeSet::from([10, 11]);
        let said: Vec<String> =
            others("eth0", &hooks, &ours, &names).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "eth0 xdp: xdp_firewall (program 1, xdp) before ours",
                "eth0 ingress: mesh (program 2, tcx) before ours",
                "eth0 ingress: a program without a name (program 3, filter) after ours",
                "eth0 egress: a program without a name (program 3, filter) after ours",
            ]
        );
        assert!(has(&hooks, Hook::Ingress, &ours) && !has(&hooks, Hook::Xdp, &ours));
        assert!(!has(&hooks, Hook::Egress, &BTreeSet::from([10])));
    }
}
