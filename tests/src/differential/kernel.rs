//! The programs of the object, run by BPF_PROG_TEST_RUN, and their maps.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp, XdpMode};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader, Pod};
use lb_agent::datapath::OBJECT;
use lb_common::abi::{
    Addr, Addr4, Affinity, AffinityKey, Backend, Config, Flow, FlowAddr, FlowKey, FragmentKey, FragmentPorts,
    Reason, Service, Slot, Turn, Words as _,
};
use lb_common::datapath::packet::Table;
use lb_common::host::MemTables;
use nix::errno::Errno;

use super::packet::{Packet, Program};
use super::world::{BRIDGE, KEPT, OVERLAY, POD, POD2, PORT, UPLINK, UPLINK3};
use crate::packets::fill;

/// Room for what a program makes longer.
const GROWTH: usize = 256;

/// One of the maps with flows of a family.
type FlowMap<A> = HashMap<MapData, FlowKey<A>, Flow<A>>;

/// Both tables of flows of a family.
#[derive(Debug)]
pub(super) struct Flows<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    new: FlowMap<A>,
    kept: FlowMap<A>,
}

impl<A: FlowAddr> Flows<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    fn open(ebpf: &mut Ebpf, new: &str, kept: &str) -> Result<Self> {
        Ok(Self { new: hash(ebpf, new)?, kept: hash(ebpf, kept)? })
    }

    const fn table(&mut self, table: Table) -> &mut FlowMap<A> {
        match table {
            Table::New => &mut self.new,
            Table::Kept => &mut self.kept,
        }
    }

    fn put(&mut self, table: Table, key: &FlowKey<A>, flow: Option<&Flow<A>>) -> Result<()> {
        match flow {
            Some(flow) => self.table(table).insert(key, flow, 0)?,
            None => self.table(table).remove(key)?,
        }
        Ok(())
    }
}

/// A family, with maps of its own.
pub(super) trait Family: lb_common::host::Family {
    /// All entries of a table.
    ///
    /// # Errors
    /// Those of the map.
    fn entries(kernel: &mut Kernel, table: Table) -> Result<BTreeMap<FlowKey<Self>, Flow<Self>>>;
    /// The entry of a key, as programs find it.
    fn find(kernel: &Kernel, key: &FlowKey<Self>) -> Option<Flow<Self>>;
    /// Replaces an entry, or removes it.
    ///
    /// # Errors
    /// Those of the map.
    fn put(kernel: &mut Kernel, table: Table, key: &FlowKey<Self>, flow: Option<&Flow<Self>>) -> Result<()>;
}

/// The same for both: the compiler wants to see that a family's keys are plain memory.
macro_rules! family {
    ($addr:ty, $maps:ident) => {
        impl Family for $addr {
            fn entries(kernel: &mut Kernel, table: Table) -> Result<BTreeMap<FlowKey<Self>, Flow<Self>>> {
                entries(kernel.$maps.table(table))
            }

            fn find(kernel: &Kernel, key: &FlowKey<Self>) -> Option<Flow<Self>> {
                let Flows { new, kept } = &kernel.$maps;
                kept.get(key, 0).or_else(|_| new.get(key, 0)).ok()
            }

            fn put(
                kernel: &mut Kernel,
                table: Table,
                key: &FlowKey<Self>,
                flow: Option<&Flow<Self>>,
            ) -> Result<()> {
                kernel.$maps.put(table, key, flow)
            }
        }
    };
}
family!(Addr4, flows4);
family!(Addr, flows6);

/// What a program makes of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    /// Its action.
    pub(super) action: u32,
    /// The packet afterwards.
    pub(super) bytes: Vec<u8>,
}

/// The programs, over maps that hold what a world holds.
pub(super) struct Kernel {
    ebpf: Ebpf,
    flows4: Flows<Addr4>,
    flows6: Flows<Addr>,
    pub(super) fragments: HashMap<MapData, FragmentKey, FragmentPorts>,
    pub(super) affinity: HashMap<MapData, AffinityKey, Affinity>,
    config: Array<MapData, Config>,
    services: Array<MapData, Service>,
    slots: Array<MapData, Slot>,
    backends: Array<MapData, Backend>,
    reasons: PerCpuArray<MapData, u64>,
    turns: PerCpuArray<MapData, u64>,
    /// What was counted before the sequence at hand.
    before: BTreeMap<Reason, u64>,
}

impl Kernel {
    /// Loads the programs, in the network namespace of the world's devices.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn new(world: &MemTables) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global("LB_HAS_COARSE_CLOCK", &0_u32, true);
        for map in ["lb_new4", "lb_new6", "lb_frags", "lb_affinity"] {
            loader.map_max_entries(map, 4096);
        }
        for map in ["lb_flows4", "lb_flows6"] {
            loader.map_max_entries(map, KEPT);
        }
        let mut ebpf = loader.load(OBJECT)?;
        for program in [Program::Ingress, Program::Egress, Program::BareIngress, Program::BareEgress] {
            classifier(&mut ebpf, program.name())?.load()?;
        }
        let xdp: &mut Xdp = ebpf.program_mut(Program::Xdp.name()).context("no lb_xdp")?.try_into()?;
        xdp.load()?;
        // The kernel runs it for devices only that have some.
        for ifindex in [UPLINK, UPLINK3, OVERLAY, POD, POD2, BRIDGE, PORT] {
            xdp.attach(&format!("d{ifindex}"), XdpMode::Driver)?;
        }
        fill(&mut ebpf, world)?;
        Ok(Self {
            flows4: Flows::open(&mut ebpf, "lb_new4", "lb_flows4")?,
            flows6: Flows::open(&mut ebpf, "lb_new6", "lb_flows6")?,
            fragments: hash(&mut ebpf, "lb_frags")?,
            affinity: hash(&mut ebpf, "lb_affinity")?,
            config: ebpf.take_map("lb_config").context("no lb_config")?.try_into()?,
            services: ebpf.take_map("lb_services").context("no lb_services")?.try_into()?,
            slots: ebpf.take_map("lb_slots").context("no lb_slots")?.try_into()?,
            backends: ebpf.take_map("lb_backends").context("no lb_backends")?.try_into()?,
            reasons: ebpf.take_map("lb_reasons").context("no lb_reasons")?.try_into()?,
            turns: ebpf.take_map("lb_turns").context("no lb_turns")?.try_into()?,
            before: BTreeMap::new(),
            ebpf,
        })
    }

    /// Forgets everything that packets have left, and holds what a world holds.
    ///
    /// # Errors
    /// Those of the maps.
    pub(super) fn reset(&mut self, world: &MemTables) -> Result<()> {
        self.put(world)?;
        self.config.set(0, world.config.unwrap_or(Config::OFF), 0)?;
        for table in [Table::New, Table::Kept] {
            clear(self.flows4.table(table))?;
            clear(self.flows6.table(table))?;
        }
        clear(&mut self.fragments)?;
        clear(&mut self.affinity)?;
        for (index, turn) in &*world.turns.borrow() {
            let [word] = turn.to_words();
            let values = vec![word; nr_cpus().map_err(|(_, error)| error)?];
            self.turns.set(*index, PerCpuValues::try_from(values)?, 0)?;
        }
        self.before = self.total()?;
        Ok(())
    }

    /// Writes services, slots and backends.
    ///
    /// # Errors
    /// Those of the maps.
    pub(super) fn put(&mut self, world: &MemTables) -> Result<()> {
        for (id, service) in &world.services {
            self.services.set(id.index, *service, 0)?;
        }
        for (at, slot) in &world.slots {
            self.slots.set(*at, *slot, 0)?;
        }
        for (id, backend) in &world.backends {
            self.backends.set(id.index, *backend, 0)?;
        }
        Ok(())
    }

    /// What has been counted in the sequence at hand.
    ///
    /// # Errors
    /// Those of the maps.
    pub(super) fn counted(&self) -> Result<BTreeMap<Reason, u64>> {
        let mut counts = self.total()?;
        for (reason, before) in &self.before {
            if let Some(count) = counts.get_mut(reason) {
                *count = count.wrapping_sub(*before);
            }
        }
        counts.retain(|_, count| *count != 0);
        Ok(counts)
    }

    fn total(&self) -> Result<BTreeMap<Reason, u64>> {
        let mut counts = BTreeMap::new();
        for reason in Reason::ALL {
            let values = self.reasons.get(&(reason as u32), 0)?;
            counts.insert(reason, values.iter().sum());
        }
        Ok(counts)
    }

    /// Runs a program. Nothing if the kernel does not want to.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub(super) fn run(&self, packet: &Packet) -> Result<Option<Outcome>> {
        let mut out = vec![0; packet.bytes.len() + GROWTH];
        let context = packet.context();
        let options = TestRunOptions {
            data_in: Some(&packet.bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let name = packet.program.name();
        let program = self.ebpf.program(name).with_context(|| format!("no {name}"))?;
        let result = if packet.program == Program::Xdp {
            <&Xdp>::try_from(program)?.test_run(options)
        } else {
            <&SchedClassifier>::try_from(program)?.test_run(options)
        };
        let result = match result {
            Err(aya::programs::ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(Errno::EINVAL as i32) =>
            {
                return Ok(None);
            }
            result => result?,
        };
        out.truncate(result.data_size_out as usize);
        Ok(Some(Outcome { action: result.return_value, bytes: out }))
    }
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no {name}"))?.try_into()?)
}

fn hash<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(ebpf.take_map(name).with_context(|| format!("no {name}"))?.try_into()?)
}

/// All entries of a map.
///
/// # Errors
/// Those of the map.
pub(super) fn entries<K: Pod + Ord, V: Pod>(map: &HashMap<MapData, K, V>) -> Result<BTreeMap<K, V>> {
    map.iter().map(|entry| Ok(entry?)).collect()
}

fn clear<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}

/// An entry of `lb_turns`, from which both sides begin.
pub(super) const fn first_turn(owner: u32) -> Turn {
    Turn { next: 0, owner: owner.wrapping_add(1) }
}
