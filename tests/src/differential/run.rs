//! Sequences of packets, one for each seed.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{
    Addr, Addr4, Affinity, Backend, BackendState, FlowKey, PacketLb, Reason, Run, Slot, Turn,
};
use lb_common::datapath::packet::Table;
use lb_common::datapath::packet::refuse::Budget;
use lb_common::host::MemTables;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::compare;
use super::generate::{self, Focus, entry_in};
use super::host::{self, DROP, Read};
use super::kernel::{Family, Kernel, Outcome, entries, first_turn};
use super::packet::{Packet, Program};
use super::world::{self, BY_TURNS};
use crate::Netns;
use crate::random::Random;

/// Packets of a sequence.
const STEPS: usize = 200;
/// What a program takes for a second: 2^30 ns.
const SECOND: u64 = 1 << 30;

/// Two sides that are to agree.
#[derive(Debug)]
pub struct Differential {
    netns: Netns,
}

/// What was compared.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many packets.
    pub packets: u64,
    /// Of those, how many the kernel does not run a program for.
    pub not_run: u64,
    /// Sequences that count for nothing, because the clock went on.
    pub undecided: u64,
    /// How often each program has said what, and whether the packet was another one then.
    pub seen: BTreeMap<(&'static str, u32, bool), u64>,
    /// What was counted.
    pub counts: BTreeMap<Reason, u64>,
    /// Flows that were left at the ends of sequences: in the small tables, and kept.
    pub flows: (u64, u64),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, not_run, undecided, flows: (new, kept), .. } = self;
        writeln!(f, "{packets} packets agree; {not_run} that the kernel does not run a program for")?;
        writeln!(
            f,
            "{new} new and {kept} kept flows compared; {undecided} sequences cut short by the clock"
        )?;
        for ((name, action, changed), count) in &self.seen {
            let changed = if *changed { ", changed" } else { "" };
            writeln!(f, "{name} {}{changed}: {count}", action.cast_signed())?;
        }
        for (reason, count) in &self.counts {
            writeln!(f, "{}: {count}", reason.name())?;
        }
        Ok(())
    }
}

/// Whether a sequence goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Agreed,
    Undecided,
}

impl Differential {
    /// Makes the node.
    ///
    /// # Errors
    /// Those of ip(8).
    pub fn new() -> Result<Self> {
        Ok(Self { netns: world::node()? })
    }

    /// Compares at least so many packets, in a sequence for each seed from `first` on.
    ///
    /// # Errors
    /// The sides do not agree: the error has the seed of the sequence, which does it alone.
    pub fn run(&self, first: u64, packets: u64) -> Result<Report> {
        self.netns.run(|| {
            // Turns are counted by CPU.
            let mut cpus = CpuSet::new();
            cpus.set(sched_getcpu()?)?;
            sched_setaffinity(Pid::from_raw(0), &cpus)?;
            let world = world::world(PacketLb::default());
            let mut kernel = Kernel::new(&world)?;
            let mut report = Report::default();
            let mut seed = first;
            while report.packets < packets {
                if let Err(late) = Sequence::new(seed, &mut kernel)?.run(&mut report, false) {
                    // Once more, with a look at all tables after each packet: what differs first says more.
                    let early = Sequence::new(seed, &mut kernel)?.run(&mut Report::default(), true);
                    let command = format!("cargo xtask soak packets --seed {seed} --packets 1");
                    return Err(early.err().unwrap_or(late).context(format!("seed {seed}: {command}")));
                }
                seed = seed.wrapping_add(1);
            }
            Ok(report)
        })
    }
}

/// One sequence.
struct Sequence<'a> {
    random: Random,
    focus: Focus,
    world: MemTables,
    kernel: &'a mut Kernel,
    /// Packets so far.
    done: Vec<Packet>,
}

impl<'a> Sequence<'a> {
    fn new(seed: u64, kernel: &'a mut Kernel) -> Result<Self> {
        let mut random = Random::new(&[seed]);
        let switches =
            [PacketLb::EXTERNAL_CLUSTER_IP, PacketLb::MASQUERADE_ALL, PacketLb::MAGLEV, PacketLb::POD_RANGES];
        let mut bits = PacketLb::default();
        for (switch, percent) in switches.into_iter().zip([40, 20, 50, 30]) {
            if random.chance(percent) {
                bits = bits.with(switch);
            }
        }
        let focus = Focus::new(&mut random);
        let world = world::world(bits);
        for is_v6 in [false, true] {
            let id = world::id(BY_TURNS, is_v6);
            world.turns.borrow_mut().insert(Turn::index(id), first_turn(id.index));
        }
        kernel.reset(&world)?;
        Ok(Self { random, focus, world, kernel, done: Vec::new() })
    }

    fn run(mut self, report: &mut Report, is_thorough: bool) -> Result<()> {
        for _ in 0..STEPS {
            if self.random.chance(5) {
                self.happens()?;
            }
            let mut packet = generate::packet(&self.world, &mut self.random, &self.focus);
            if packet.program == Program::Xdp && self.leads_astray(&packet) {
                packet.program = Program::Ingress;
            }
            self.done.push(packet.clone());
            report.packets += 1;
            let compared = self.compare(&packet, report).with_context(|| self.story());
            if compared? == Step::Undecided {
                report.undecided += 1;
                return Ok(());
            }
            if is_thorough {
                self.compare_tables().with_context(|| self.story())?;
            }
        }
        let (new, kept) = self.compare_tables().with_context(|| self.story())?;
        report.flows.0 += new;
        report.flows.1 += kept;
        for (reason, count) in &*self.world.counts.borrow() {
            *report.counts.entry(*reason).or_default() += count;
        }
        Ok(())
    }

    /// The packets so far.
    fn story(&self) -> String {
        let lines: Vec<String> =
            self.done.iter().enumerate().map(|(number, packet)| format!("{number}: {packet:?}")).collect();
        format!("these packets, and then\n{}", lines.join("\n"))
    }

    /// Whether a packet is of a flow that leads to an address whose routes nobody has thought of.
    fn leads_astray(&self, packet: &Packet) -> bool {
        fn astray<A: lb_common::host::Family>(world: &MemTables, key: &FlowKey<A>) -> bool {
            let tables = A::of(world);
            [&tables.kept, &tables.new]
                .into_iter()
                .any(|table| table.borrow().get(key).is_some_and(|flow| !world::is_known(flow.dst.widen())))
        }
        match packet.read() {
            Some((_, Read::V4(headers))) => astray(&self.world, &headers.key),
            Some((_, Read::V6(headers))) => astray(&self.world, &headers.key),
            None => false,
        }
    }

    fn compare(&mut self, packet: &Packet, report: &mut Report) -> Result<Step> {
        let now = wait_for_a_quiet_moment()?;
        let Some(theirs) = self.kernel.run(packet)? else {
            report.not_run += 1;
            return Ok(Step::Agreed);
        };
        if clock()? / SECOND != now / SECOND {
            return Ok(Step::Undecided);
        }
        self.world.now_ms.set(now / 1_000_000);
        #[expect(clippy::cast_possible_truncation, reason = "as programs do")]
        self.world.clock_s.set(Some((now / SECOND) as u32));
        let ours = self.host(packet, &theirs)?;
        compare::outcomes(packet, &ours, &theirs)?;
        let changed = theirs.bytes != packet.bytes;
        *report.seen.entry((packet.program.name(), theirs.action, changed)).or_default() += 1;
        Ok(Step::Agreed)
    }

    /// What the host makes of a packet, by the chances that the program had.
    fn host(&mut self, packet: &Packet, theirs: &Outcome) -> Result<Outcome> {
        match packet.read() {
            Some((_, Read::V4(headers))) => self.decide(packet, theirs, &headers.key),
            Some((_, Read::V6(headers))) => self.decide(packet, theirs, &headers.key),
            None => Ok(host::decide(&self.world, packet)),
        }
    }

    fn decide<A: Family>(&mut self, packet: &Packet, theirs: &Outcome, key: &FlowKey<A>) -> Result<Outcome> {
        self.world.budget.set(Budget::default());
        let known = A::find(self.kernel, key).map(|flow| {
            let number = self.slot_number(|slot| {
                slot.backend == flow.backend && slot.addr == flow.dst.widen() && slot.port == flow.dport
            });
            (number, self.world.ports.contains(&flow.sport).then_some(flow.sport))
        });
        if packet.program != Program::Xdp && theirs.action == DROP {
            return self.dropped(packet, known);
        }
        Ok(self.decide_by(packet, known.unwrap_or_default()))
    }

    /// What the host makes of a packet with this number for every choice, and this port where one is drawn.
    fn decide_by(&mut self, packet: &Packet, (number, port): (u32, Option<u16>)) -> Outcome {
        let ports = self.world.ports.clone();
        if let Some(port) = port {
            self.world.ports = vec![port];
        }
        *self.world.random.borrow_mut() = vec![number; 64];
        let ours = host::decide(&self.world, packet);
        self.world.random.borrow_mut().clear();
        self.world.ports = ports;
        ours
    }

    /// A number by which the slot is chosen that is meant, of the run that has it.
    fn slot_number(&self, is_meant: impl Fn(&Slot) -> bool) -> u32 {
        let chooses = |run: &Run| {
            let count = u32::from(run.count);
            let offset = (0..count)
                .find(|offset| self.world.slots.get(&(run.base + offset)).is_some_and(&is_meant))?;
            u32::try_from((u64::from(offset) << 32).div_ceil(u64::from(count))).ok()
        };
        self.world.services.values().find_map(|service| chooses(&service.cluster)).unwrap_or(0)
    }

    /// A packet that the program has dropped: what it has drawn shows in an entry, or in what it has counted, and in the client's affinity.
    fn dropped(&mut self, packet: &Packet, known: Option<(u32, Option<u16>)>) -> Result<Outcome> {
        let counted = self.kernel.counted()?;
        let affinity = entries(&self.kernel.affinity)?;
        let before = self.world.clone();
        let choices = known.into_iter().chain((0..4).map(|quarter| (quarter << 30, None)));
        for (choice, is_spent) in choices.flat_map(|choice| [(choice, false), (choice, true)]) {
            if is_spent {
                self.world.budget.set(spent(self.world.now_ms.get()));
            }
            let ours = self.decide_by(packet, choice);
            let is_explained = ours.action == DROP
                && *self.world.counts.borrow() == counted
                && compare::affinity(&self.world.affinity.borrow(), &affinity).is_ok();
            if is_explained {
                return Ok(ours);
            }
            self.world = before.clone();
        }
        Ok(host::decide(&self.world, packet))
    }

    /// Time, the agent, or a lack of room changes something.
    fn happens(&mut self) -> Result<()> {
        match self.random.below(8) {
            0 | 1 => {
                let seconds = self.random.pick(&[1, 3, 9, 140]);
                self.age_flows::<Addr4>(seconds)?;
                self.age_flows::<Addr>(seconds)
            }
            2 => self.age_affinity(3000),
            3 => self.lose_entry::<Addr4>(),
            4 => self.lose_entry::<Addr>(),
            5 => self.change_backend(),
            _ => self.change_service(),
        }
    }

    fn age_flows<A: Family>(&mut self, seconds: u32) -> Result<()> {
        for table in [Table::New, Table::Kept] {
            let tables = A::of(&self.world);
            let entries = if table == Table::New { &tables.new } else { &tables.kept };
            for (key, flow) in &mut *entries.borrow_mut() {
                flow.seen_s = flow.seen_s.wrapping_sub(seconds);
                A::put(self.kernel, table, key, Some(flow))?;
            }
        }
        Ok(())
    }

    fn age_affinity(&mut self, ms: u64) -> Result<()> {
        self.agree_on_affinity()?;
        for (key, entry) in &mut *self.world.affinity.borrow_mut() {
            *entry = Affinity { seen_ms: entry.seen_ms.saturating_sub(ms), ..*entry };
            self.kernel.affinity.insert(key, *entry, 0)?;
        }
        Ok(())
    }

    /// As if it were evicted, or collected.
    fn lose_entry<A: Family>(&mut self) -> Result<()> {
        let table = self.random.pick(&[Table::New, Table::Kept]);
        let Some((key, _)) = entry_in::<A>(&self.world, table, &mut self.random) else { return Ok(()) };
        lb_common::datapath::packet::Flows::remove_flow(&self.world, table, &key);
        A::put(self.kernel, table, &key, None)
    }

    /// A backend goes, or comes back as somebody else.
    fn change_backend(&mut self) -> Result<()> {
        let number = self.random.below(self.world.backends.len());
        if let Some((id, backend)) = self.world.backends.iter_mut().nth(number) {
            let free = BackendState::Free as u8;
            let state = if backend.state == free { BackendState::Active as u8 } else { free };
            *backend =
                Backend { state, generation: backend.generation + u32::from(state == free), ..*backend };
            let generation = backend.generation;
            for slot in self.world.slots.values_mut().filter(|slot| slot.backend == *id) {
                slot.generation = generation;
            }
        }
        self.kernel.put(&self.world)
    }

    /// A Service loses its backends, gets them back, or its affinity begins anew.
    fn change_service(&mut self) -> Result<()> {
        let number = self.random.below(self.world.services.len());
        let what = self.random.below(3);
        let original = world::world(PacketLb::default());
        if let Some((id, service)) = self.world.services.iter_mut().nth(number) {
            let was = original.services.get(id).context("a Service that is not there")?;
            match what {
                0 => {
                    service.cluster =
                        if service.cluster.count == 0 { was.cluster } else { Run { count: 0, ..was.cluster } }
                }
                1 => service.local = if service.local == was.local { Run::ELSEWHERE } else { was.local },
                _ => service.generation += 1,
            }
        }
        self.kernel.put(&self.world)
    }

    /// Programs have read their clock a moment later than the host.
    fn agree_on_affinity(&mut self) -> Result<()> {
        let theirs = entries(&self.kernel.affinity)?;
        let mut ours = self.world.affinity.borrow_mut();
        compare::affinity(&ours, &theirs)?;
        *ours = theirs;
        Ok(())
    }

    /// Compares what was counted and what is left: how many flows in the small tables, and how many kept ones.
    fn compare_tables(&mut self) -> Result<(u64, u64)> {
        let counted = self.kernel.counted()?;
        let ours = self.world.counts.borrow().clone();
        ensure!(ours == counted, "counted by the host {ours:?}, by the programs {counted:?}");
        let mut sizes = (0, 0);
        for (new, kept) in [self.compare_flows::<Addr4>()?, self.compare_flows::<Addr>()?] {
            sizes = (sizes.0 + new, sizes.1 + kept);
        }
        let fragments = entries(&self.kernel.fragments)?;
        compare::maps("lb_frags", &self.world.fragments.borrow(), &fragments)?;
        self.agree_on_affinity()?;
        Ok(sizes)
    }

    fn compare_flows<A: Family>(&mut self) -> Result<(u64, u64)> {
        let theirs = [A::entries(self.kernel, Table::New)?, A::entries(self.kernel, Table::Kept)?];
        let ours = A::of(&self.world);
        compare::maps("new flows", &ours.new.borrow(), &theirs[0])?;
        compare::maps("kept flows", &ours.kept.borrow(), &theirs[1])?;
        let [new, kept] = theirs.map(|entries| entries.len() as u64);
        Ok((new, kept))
    }
}

/// A budget of which nothing is left at this moment.
fn spent(now_ms: u64) -> Budget {
    let mut budget = Budget::default();
    while budget.take(now_ms) {}
    budget
}

/// Nanoseconds of the clock that programs read.
fn clock() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec())?, u64::try_from(time.tv_nsec())?);
    Ok(seconds * 1_000_000_000 + nanoseconds)
}

/// Now, when a program's second does not end soon.
fn wait_for_a_quiet_moment() -> Result<u64> {
    loop {
        let now = clock()?;
        if now % SECOND < SECOND - 1_000_000 {
            return Ok(now);
        }
    }
}
