//! Loading the object over maps that are pinned already, over bigger copies of them, or over new ones.
//!
//! Growing is: create bigger maps, copy every entry under its old key and id, put the new maps in the place of the old pins
//! ([`PinDir::commit`]); then, before anything is written, [`super::attach::replace`] the programs. Whoever stops in between
//! leaves pins of equal content, and the next start replaces the programs.
//!
//! Where one of the maps that belong together is not pinned, all of them are made anew. Programs that are attached go on with
//! the old ones until the new ones are filled: then come the pins, and the programs last.

use aya::{
    Ebpf, EbpfError, EbpfLoader, Pod,
    maps::{Map, MapData},
    programs::{CgroupSockAddr, ProgramError, ProgramType, SchedClassifier},
    sys::{BpfHelper, is_helper_supported},
};
use core::fmt::Debug;
use std::{
    hash::{BuildHasher as _, RandomState},
    os::fd::AsFd as _,
    path::Path,
};

use lb_common::abi::{
    Addr, Address, Affinity, AffinityKey, Backend, BackendState, Config, Device, Frontend, FrontendKey,
    Netns, RangePrefix, Service, Words as _, maps as names, split32,
};

use super::{DEVICE_PROGRAMS, OBJECT, PROGRAMS, Program, host::HostError};
use crate::{
    config::RefuseBy,
    maps::{
        Array, MapError, Maps, Op, Table,
        grace::KernelGrace,
        kernel::{KernelArray, KernelTable, from_aya},
        memory::Capacities,
        pin::{ANEW, Content, DATA, PinDir, PinError, SPECS, Staged},
        sys,
    },
};

/// Why the object could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder in bpffs.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel refused a map or the object's BTF.
    #[error("cannot create the BPF maps")]
    Object(#[source] Box<EbpfError>),
    /// The kernel refused something, and lacks what socket storage needs.
    #[error(
        "this kernel has no BTF ({VMLINUX}): lb-agent needs one that was built with CONFIG_DEBUG_INFO_BTF"
    )]
    NoBtf(#[source] Box<LoadError>),
    /// The kernel refused a program.
    #[error("the kernel refuses the program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The verifier's or the loader's words.
        #[source]
        source: Box<ProgramError>,
    },
    /// The object lacks something that this agent was built with.
    #[error("the BPF object has no {0}: it was not built with this agent")]
    Missing(&'static str),
}

/// Where a kernel shows its own BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// What programs know for their whole life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switches {
    /// `LB_HOST_NETNS`
    pub host_netns: u64,
    /// `LB_HAS_SET_RETVAL`
    pub has_set_retval: bool,
    /// `LB_HAS_MPTCP`
    pub has_mptcp: bool,
    /// `LB_HAS_COARSE_CLOCK`
    pub has_coarse_clock: bool,
}

impl Switches {
    /// Probes the kernel, and follows `refuse_by` as far as it can.
    ///
    /// # Errors
    /// [`HostError::NoSetRetval`].
    pub fn probe(host_netns: u64, refuse_by: RefuseBy) -> Result<Self, HostError> {
        let probed = is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
        let has_set_retval = match (refuse_by, probed.unwrap_or(false)) {
            (RefuseBy::Auto, found) => found,
            (RefuseBy::Hook, true) => true,
            (RefuseBy::Hook, false) => return Err(HostError::NoSetRetval),
            (RefuseBy::Address, _) => false,
        };
        // The helper is offered by kernels without MPTCP too, but a program that calls it does not load there.
        let has_mptcp = Path::new("/proc/sys/net/mptcp").exists()
            && is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_skc_to_mptcp_sock)
                .unwrap_or(false);
        let clock = BpfHelper::BPF_FUNC_ktime_get_coarse_ns;
        let has_coarse_clock = is_helper_supported(ProgramType::SchedClassifier, clock).unwrap_or(false);
        Ok(Self { host_netns, has_set_retval, has_mptcp, has_coarse_clock })
    }
}

/// A map that has a size.
fn wanted(capacities: &Capacities, name: &str) -> Option<u32> {
    match name {
        names::FRONTENDS => Some(capacities.frontends),
        names::ADDRESSES => Some(capacities.addresses),
        names::SERVICES => Some(capacities.services),
        names::SLOTS => Some(capacities.slots),
        names::BACKENDS => Some(capacities.backends),
        names::AFFINITY => Some(with_reserves(capacities.affinity)),
        names::SRC_RANGES => Some(capacities.ranges),
        names::FLOWS4 => Some(capacities.flows4.saturating_mul(2)),
        names::FLOWS6 => Some(capacities.flows6.saturating_mul(2)),
        names::NEW4 => Some(new_flows(capacities.flows4)),
        names::NEW6 => Some(new_flows(capacities.flows6)),
        _ => None,
    }
}

/// Entries for flows that have not proved both directions, by those that have: a quarter as many flows.
fn new_flows(kept: u32) -> u32 {
    if kept <= 1 { 1 } else { with_reserves(kept.div_ceil(2)) }
}

/// Datagrams whose pieces are on their way at once.
const FRAGMENTS: u32 = 8192;

/// Elements of an LRU map that each CPU may keep for itself, where no other one finds them (`LOCAL_FREE_TARGET` in
/// kernel/bpf/bpf_lru_list.c).
const LRU_RESERVE: u32 = 128;

/// How many entries an LRU map must have so that this many are there for every CPU.
fn with_reserves(entries: u32) -> u32 {
    let cpus = aya::util::nr_cpus().ok().and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1);
    entries.saturating_add(cpus.saturating_mul(LRU_RESERVE))
}

/// Programs that are loaded, not attached.
pub struct Loaded {
    /// The object.
    pub ebpf: Ebpf,
    /// The maps for the reconciler.
    pub maps: Maps,
    /// Their sizes.
    pub capacities: Capacities,
    /// Logs what the programs have said since the last call; nothing in builds without `bpf-log`.
    pub flush_log: Box<dyn FnMut() + Send>,
    /// The maps that are new.
    pub staged: Staged,
}

/// Loads the object over the pinned maps. Those that are smaller than `need` are created again and take over every entry; if
/// one is missing that the others need, all are created, empty.
///
/// # Errors
/// [`LoadError`]; what was pinned and attached before is still there and works, and still is after a success until
/// [`Loaded::staged`] is committed.
pub fn load(
    dir: &PinDir,
    switches: Switches,
    need: Capacities,
    on_grace: impl Fn() + Send + 'static,
) -> Result<Loaded, LoadError> {
    // Below 5.11 maps count against the limit on locked memory; where it cannot be raised, loading will say so.
    drop(sys::unlimit_memlock());
    let (staged, capacities) = beside(dir, need)?;
    check_layout(dir)?;
    // Of an agent that has ended in between.
    dir.unstage();
    let mut ebpf = open_object(dir, switches, &capacities, &staged.names).map_err(without_btf)?;
    for Program { name, .. } in PROGRAMS {
        let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
        let failed = |source| LoadError::Program { program: name, source: Box::new(source) };
        let program: &mut CgroupSockAddr = program.try_into().map_err(failed)?;
        program.load().map_err(failed).map_err(without_btf)?;
    }
    for name in if need.serves_packets() { &DEVICE_PROGRAMS[..] } else { &[] } {
        let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
        let failed = |source| LoadError::Program { program: name, source: Box::new(source) };
        let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
        program.load().map_err(failed).map_err(without_btf)?;
    }
    let new: Vec<_> = staged
        .names
        .iter()
        .map(|name| Ok((*name, again(name, data(ebpf.map(name).ok_or(LoadError::Missing(name))?, name)?)?)))
        .collect::<Result<_, LoadError>>()?;
    match staged.content {
        Content::Same => {
            let random = RandomState::new().hash_one(0);
            new.iter().try_for_each(|(name, map)| copy(dir, name, (map, random)))?;
        }
        Content::Other => {
            count_exempt(&ebpf)?;
            begin_all_generations(&ebpf, RandomState::new().hash_one(0))?;
        }
    }
    let flush_log = read_log(&mut ebpf);
    let maps = take_maps(&mut ebpf, on_grace)?;
    // Last, so that only a failure that is about pins leaves any.
    new.iter().try_for_each(|(name, map)| dir.stage(name, map)).inspect_err(|_| dir.unstage())?;
    Ok(Loaded { ebpf, maps, capacities, flush_log, staged })
}

/// The flow tables.
const FLOWS: [&str; 4] = [names::NEW4, names::NEW6, names::FLOWS4, names::FLOWS6];
/// Entries of flow tables that nobody uses, at most.
const UNUSED_FLOWS: u32 = 2;

/// Which maps are created beside their pins, and the size of each.
fn beside(dir: &PinDir, need: Capacities) -> Result<(Staged, Capacities), LoadError> {
    let mut capacities = need;
    let (mut grown, mut missing) = (Vec::new(), false);
    for spec in &SPECS {
        let found = dir.found(spec)?;
        missing |= found.is_none() && DATA.contains(&spec.name);
        let (Some(found), Some(wanted)) = (found, wanted(&need, spec.name)) else { continue };
        // Flows that are known are not put at risk for the room of more.
        let is_in_use = FLOWS.contains(&spec.name) && found.max_entries() > UNUSED_FLOWS;
        if found.max_entries() < wanted && !is_in_use {
            grown.push(spec.name);
        } else {
            set(&mut capacities, spec.name, found.max_entries());
        }
    }
    let staged = if missing {
        Staged { names: ANEW.to_vec(), content: Content::Other }
    } else {
        Staged { names: grown, content: Content::Same }
    };
    Ok((staged, capacities))
}

/// Namespaces stay exempt when `lb_config` is made anew.
fn count_exempt(ebpf: &Ebpf) -> Result<(), LoadError> {
    let map = |name| data(ebpf.map(name).ok_or(LoadError::Missing(name))?, name);
    let exempt = KernelTable::<u64, Netns>::new(names::NETNS, again(names::NETNS, map(names::NETNS)?)?)?;
    let netns_entries = u32::try_from(exempt.dump()?.len()).unwrap_or(u32::MAX);
    let words = Config { netns_entries, ..Config::OFF }.to_words();
    let at = Config::NETNS_WORD;
    Ok(KernelArray::new(names::CONFIG, map(names::CONFIG)?)?.store(at, words[at])?)
}

/// Lets the generations of all ids begin at a random number: sockets may still remember ids of maps that were here before.
fn begin_all_generations(ebpf: &Ebpf, random: u64) -> Result<(), LoadError> {
    for name in [names::SERVICES, names::BACKENDS] {
        let map = data(ebpf.map(name).ok_or(LoadError::Missing(name))?, name)?;
        begin_generations(name, &mut KernelArray::new(name, map)?, 0, random)?;
    }
    Ok(())
}

/// The same for the words from `first` on of an array; nothing for those that hold no ids.
fn begin_generations(
    name: &'static str,
    array: &mut KernelArray,
    first: usize,
    random: u64,
) -> Result<(), LoadError> {
    let (services, backends) = split32(random);
    match name {
        names::SERVICES => {
            let words = Service { generation: services, ..Service::FREE }.to_words();
            for at in (first..array.words()).step_by(Service::WORDS) {
                array.store(at + Service::GENERATION_WORD, words[Service::GENERATION_WORD])?;
            }
        }
        names::BACKENDS => {
            let state = BackendState::Free as u8;
            let [word] = Backend { generation: backends, state, runs: 0, pad: 0 }.to_words();
            // Id 0 is nobody's.
            for index in first.max(1)..array.words() {
                array.store(index, word)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Names the lack of BTF as the cause of what may be its consequence.
fn without_btf(error: LoadError) -> LoadError {
    if Path::new(VMLINUX).exists() { error } else { LoadError::NoBtf(Box::new(error)) }
}

/// Sizes of keys and values may be equal in two layouts.
fn check_layout(dir: &PinDir) -> Result<(), LoadError> {
    let path = dir.map(names::META);
    if path.exists() {
        let map = MapData::from_pin(&path).map_err(|error| opening(names::META, error))?;
        dir.check_layout(&KernelArray::new(names::META, &map)?)?;
    }
    Ok(())
}

#[cfg(feature = "bpf-log")]
fn read_log(ebpf: &mut Ebpf) -> Box<dyn FnMut() + Send> {
    match aya_log::EbpfLogger::init(ebpf) {
        Ok(mut log) => Box::new(move || log.flush()),
        Err(error) => {
            tracing::warn!(%error, "cannot read what the BPF programs log");
            Box::new(|| {})
        }
    }
}

#[cfg(not(feature = "bpf-log"))]
fn read_log(_: &mut Ebpf) -> Box<dyn FnMut() + Send> {
    Box::new(|| {})
}

fn set(capacities: &mut Capacities, name: &str, entries: u32) {
    match name {
        names::FRONTENDS => capacities.frontends = entries,
        names::ADDRESSES => capacities.addresses = entries,
        names::SERVICES => capacities.services = entries,
        names::SLOTS => capacities.slots = entries,
        names::BACKENDS => capacities.backends = entries,
        names::SRC_RANGES => capacities.ranges = entries,
        names::FLOWS4 => capacities.flows4 = entries / 2,
        names::FLOWS6 => capacities.flows6 = entries / 2,
        // What a larger one has is more than was asked for, and no map is made smaller.
        _ => {}
    }
}

/// Creates or adopts every map; those in `beside` are created and not pinned.
fn open_object(
    dir: &PinDir,
    switches: Switches,
    capacities: &Capacities,
    beside: &[&str],
) -> Result<Ebpf, LoadError> {
    let Switches { has_set_retval, has_mptcp, has_coarse_clock, .. } = switches;
    let [has_set_retval, has_mptcp, has_coarse_clock] =
        [has_set_retval, has_mptcp, has_coarse_clock].map(u32::from);
    let mut loader = EbpfLoader::new();
    loader.override_global("LB_HOST_NETNS", &switches.host_netns, true);
    loader.override_global("LB_HAS_SET_RETVAL", &has_set_retval, true);
    loader.override_global("LB_HAS_MPTCP", &has_mptcp, true);
    loader.override_global("LB_HAS_COARSE_CLOCK", &has_coarse_clock, true);
    for spec in &SPECS {
        if let Some(entries) = wanted(capacities, spec.name) {
            loader.map_max_entries(spec.name, entries);
        }
        if !beside.contains(&spec.name) {
            loader.map_pin_path(spec.name, dir.map(spec.name));
        }
    }
    if capacities.serves_packets() {
        // It is forgotten with the programs: a datagram's pieces come within a moment.
        loader.map_max_entries(names::FRAGMENTS, with_reserves(FRAGMENTS));
    }
    loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))
}

/// Copies a pinned map into a bigger one. Ids that it did not have begin as those of maps that are made anew.
fn copy(dir: &PinDir, name: &'static str, (new, random): (&MapData, u64)) -> Result<(), LoadError> {
    let old = MapData::from_pin(dir.map(name)).map_err(|error| opening(name, error))?;
    match name {
        names::FRONTENDS => copy_table::<FrontendKey, Frontend>(name, old, new),
        names::ADDRESSES => copy_table::<Addr, Address>(name, old, new),
        names::AFFINITY => copy_table::<AffinityKey, Affinity>(name, old, new),
        names::SRC_RANGES => copy_table::<RangePrefix, u32>(name, old, new),
        // Nobody has used them.
        names::FLOWS4 | names::FLOWS6 | names::NEW4 | names::NEW6 => Ok(()),
        _ => copy_array(name, &old, (new, random)),
    }
}

fn copy_table<K, V>(name: &'static str, old: MapData, new: &MapData) -> Result<(), LoadError>
where
    K: Pod + Ord + Debug + Send,
    V: Pod + Send,
{
    let mut new = KernelTable::<K, V>::new(name, again(name, new)?)?;
    for (key, value) in KernelTable::<K, V>::new(name, old)?.dump()? {
        new.create(&key, &value)?;
    }
    Ok(())
}

/// The same map by another descriptor. Opening it by its id would need `CAP_SYS_ADMIN`.
fn again(name: &'static str, map: &MapData) -> Result<MapData, LoadError> {
    let fd = map.fd().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|errno| MapError::Kernel { map: name, op: Op::Open, errno })?;
    MapData::from_fd(fd).map_err(|error| opening(name, error))
}

fn copy_array(name: &'static str, old: &MapData, (new, random): (&MapData, u64)) -> Result<(), LoadError> {
    let old = KernelArray::new(name, old)?;
    let mut new = KernelArray::new(name, new)?;
    for index in 0..old.words() {
        let word = old.load(index);
        if word != 0 {
            new.store(index, word)?;
        }
    }
    begin_generations(name, &mut new, old.words(), random)
}

fn opening(map: &'static str, error: aya::maps::MapError) -> LoadError {
    from_aya(map, Op::Open, error).into()
}

/// The map behind aya's enumeration of kinds.
fn data<'a>(map: &'a Map, name: &'static str) -> Result<&'a MapData, LoadError> {
    inner(map).ok_or(LoadError::Missing(name))
}

/// The same, or nothing for kinds that this agent has no use for.
pub(super) const fn inner(map: &Map) -> Option<&MapData> {
    match map {
        Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data) | Map::LpmTrie(data) => Some(data),
        _ => None,
    }
}

/// The maps that the reconciler writes.
fn take_maps(ebpf: &mut Ebpf, on_grace: impl Fn() + Send + 'static) -> Result<Maps, LoadError> {
    let mut hash = |name: &'static str| match ebpf.take_map(name) {
        Some(Map::HashMap(data) | Map::LpmTrie(data)) => Ok(data),
        _ => Err(LoadError::Missing(name)),
    };
    let frontends = KernelTable::<FrontendKey, Frontend>::new(names::FRONTENDS, hash(names::FRONTENDS)?)?;
    let addresses = KernelTable::<Addr, Address>::new(names::ADDRESSES, hash(names::ADDRESSES)?)?;
    let devices = KernelTable::<u32, Device>::new(names::DEVICES, hash(names::DEVICES)?)?;
    let ranges = KernelTable::<RangePrefix, u32>::new(names::SRC_RANGES, hash(names::SRC_RANGES)?)?;
    let array = |name: &'static str| -> Result<Box<dyn Array>, LoadError> {
        let map = data(ebpf.map(name).ok_or(LoadError::Missing(name))?, name)?;
        Ok(Box::new(KernelArray::new(name, map)?))
    };
    Ok(Maps {
        frontends: Box::new(frontends),
        addresses: Box::new(addresses),
        services: array(names::SERVICES)?,
        slots: array(names::SLOTS)?,
        backends: array(names::BACKENDS)?,
        config: array(names::CONFIG)?,
        devices: Box::new(devices),
        ranges: Box::new(ranges),
        ports: array(names::PORTS)?,
        meta: array(names::META)?,
        grace: Box::new(KernelGrace::start(on_grace)?),
    })
}
