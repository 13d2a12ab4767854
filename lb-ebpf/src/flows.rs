//! `lb_common::datapath::packet::Flows` over the maps and the kernel's routes.
#![expect(unsafe_code, reason = "map values and helpers are raw pointers")]

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST, bpf_fib_lookup as FibLookup},
    btf_maps::lpm_trie::Key,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
};
use core::{cell::UnsafeCell, hint::black_box, ptr};
use lb_common::{
    abi::{
        Addr, Addr4, Device, Flow, FlowAddr, FlowKey, FlowState, FragmentKey, FragmentPorts, RangeKey,
        ServiceId,
    },
    datapath::{
        packet::{Flows, Place, Route, Side, Table, Verdict, Way, Work, refuse::Why},
        tables::Tables as _,
    },
};

use crate::{
    functions, maps, rare,
    routes::route,
    skb::Skb,
    tables::{BpfTables, copy_words},
    tc::Start,
};

/// Address families (include/linux/socket.h).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Another number whenever a flow has gone from the small table to the other one: whoever finds a flow in neither looks whether one went there
/// meanwhile. A random one, because counting together needs atomic operations.
static EPOCH: Epoch = Epoch(UnsafeCell::new(0));

/// See [`EPOCH`].
struct Epoch(UnsafeCell<u64>);

// SAFETY: an aligned word, loaded and stored whole.
unsafe impl Sync for Epoch {}

impl Epoch {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: as above. Volatile: other CPUs store.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn store(&self, number: u64) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(number) };
    }
}

/// Memory for the packet at hand.
#[repr(C)]
pub(crate) struct Scratch<A> {
    pub(crate) work: Work<A>,
    /// For the kernel's routes.
    pub(crate) lookup: FibLookup,
}

/// What the families have each for themselves.
pub(crate) trait Family: FlowAddr {
    /// Pointer to the entry of a key.
    fn entry(table: Table, key: &FlowKey<Self>) -> Option<*mut Flow<Self>>;
    /// Writes an entry.
    fn put(table: Table, key: &FlowKey<Self>, flow: &Flow<Self>, flags: u64) -> bool;
    /// Deletes an entry.
    fn remove(table: Table, key: &FlowKey<Self>);
    /// Writes both addresses of a look-up for a route.
    fn put_ends(lookup: &mut FibLookup, key: &FlowKey<Self>);
    /// Puts a device, and the router that is reached by it, in the place of what a look-up has found; false if none is known.
    fn put_router(lookup: &mut FibLookup, ifindex: u32) -> bool;
    /// Memory for one packet of this CPU, one for each side: a packet may leave while another one comes.
    fn scratch(side: Side) -> Option<*mut Scratch<Self>>;
    /// `tc::see`, by the function that is made for the family, the side and the start.
    fn call_see(ctx: *mut __sk_buff, side: Side, start: Start) -> u64;
    /// `tc::translate`, likewise.
    fn call_translate(ctx: *mut __sk_buff, side: Side, l3: u32, way: Way) -> u64;
    /// [`begin`], likewise.
    fn call_begin(ctx: *mut __sk_buff, ifindex: u32) -> u64;
    /// [`commit`], likewise.
    fn call_commit(former: u32) -> u64;
    /// [`reserve`], likewise.
    fn call_reserve() -> u32;
    /// `rare::refuse`, likewise.
    fn call_refuse(ctx: *mut __sk_buff, side: Side, l3: u32, why: Why) -> i32;
    /// `rare::icmp`, likewise.
    fn call_icmp(ctx: *mut __sk_buff, side: Side, ifindex: u32) -> Verdict;
    /// `rare::retell`, likewise.
    fn call_retell(ctx: *mut __sk_buff, side: Side, l3: u32, forwards: bool) -> bool;
    /// `rare::first`, likewise.
    fn call_first(side: Side, id: u32);
    /// `rare::later`, likewise.
    fn call_later(side: Side, id: u32) -> bool;
}

impl Family for Addr4 {
    #[inline(always)]
    fn entry(table: Table, key: &FlowKey<Self>) -> Option<*mut Flow<Self>> {
        match table {
            Table::New => maps::NEW4.get_ptr_mut(key),
            Table::Kept => maps::FLOWS4.get_ptr_mut(key),
        }
    }

    #[inline(always)]
    fn put(table: Table, key: &FlowKey<Self>, flow: &Flow<Self>, flags: u64) -> bool {
        match table {
            Table::New => maps::NEW4.insert(key, flow, flags).is_ok(),
            Table::Kept => maps::FLOWS4.insert(key, flow, flags).is_ok(),
        }
    }

    #[inline(always)]
    fn remove(table: Table, key: &FlowKey<Self>) {
        // Whoever was faster has done the same.
        let _removed = match table {
            Table::New => maps::NEW4.remove(key),
            Table::Kept => maps::FLOWS4.remove(key),
        };
    }

    #[inline(always)]
    fn put_ends(lookup: &mut FibLookup, key: &FlowKey<Self>) {
        lookup.family = AF_INET;
        lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(key.src.octets);
        lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(key.dst.octets);
    }

    #[inline(always)]
    fn put_router(_lookup: &mut FibLookup, _ifindex: u32) -> bool {
        // A device that is named is taken at its word.
        false
    }

    #[inline(always)]
    fn scratch(side: Side) -> Option<*mut Scratch<Self>> {
        maps::SCRATCH4.get_ptr_mut(side as u32)
    }

    #[inline(always)]
    fn call_see(ctx: *mut __sk_buff, side: Side, start: Start) -> u64 {
        match (side, start) {
            (Side::Ingress, Start::Ethernet) => functions::lb_ingress4(ctx),
            (Side::Ingress, Start::Tagged(l3)) => functions::lb_tagged_ingress4(ctx, l3),
            (Side::Ingress, Start::Bare) => functions::lb_bare_ingress4(ctx),
            (Side::Egress, Start::Ethernet) => functions::lb_egress4(ctx),
            (Side::Egress, Start::Tagged(l3)) => functions::lb_tagged_egress4(ctx, l3),
            (Side::Egress, Start::Bare) => functions::lb_bare_egress4(ctx),
        }
    }

    #[inline(always)]
    fn call_translate(ctx: *mut __sk_buff, side: Side, l3: u32, way: Way) -> u64 {
        functions::lb_translate4(ctx, side as u32, l3, number(Verdict::Translate(way)))
    }

    #[inline(always)]
    fn call_begin(ctx: *mut __sk_buff, ifindex: u32) -> u64 {
        functions::lb_begin4(ctx, ifindex)
    }

    #[inline(always)]
    fn call_commit(former: u32) -> u64 {
        functions::lb_commit4(former)
    }

    #[inline(always)]
    fn call_reserve() -> u32 {
        functions::lb_reserve4()
    }

    #[inline(always)]
    fn call_refuse(ctx: *mut __sk_buff, side: Side, l3: u32, why: Why) -> i32 {
        rare::lb_refuse4(ctx, side as u32, l3, why.number())
    }

    #[inline(always)]
    fn call_icmp(ctx: *mut __sk_buff, side: Side, ifindex: u32) -> Verdict {
        verdict_of(rare::lb_icmp4(ctx, side as u32, ifindex))
    }

    #[inline(always)]
    fn call_retell(ctx: *mut __sk_buff, side: Side, l3: u32, forwards: bool) -> bool {
        rare::lb_retell4(ctx, side as u32, l3, forwards.into()) != 0
    }

    #[inline(always)]
    fn call_first(side: Side, id: u32) {
        rare::lb_first4(side as u32, id);
    }

    #[inline(always)]
    fn call_later(side: Side, id: u32) -> bool {
        rare::lb_later4(side as u32, id) != 0
    }
}

impl Family for Addr {
    #[inline(always)]
    fn entry(table: Table, key: &FlowKey<Self>) -> Option<*mut Flow<Self>> {
        match table {
            Table::New => maps::NEW6.get_ptr_mut(key),
            Table::Kept => maps::FLOWS6.get_ptr_mut(key),
        }
    }

    #[inline(always)]
    fn put(table: Table, key: &FlowKey<Self>, flow: &Flow<Self>, flags: u64) -> bool {
        match table {
            Table::New => maps::NEW6.insert(key, flow, flags).is_ok(),
            Table::Kept => maps::FLOWS6.insert(key, flow, flags).is_ok(),
        }
    }

    #[inline(always)]
    fn remove(table: Table, key: &FlowKey<Self>) {
        // Whoever was faster has done the same.
        let _removed = match table {
            Table::New => maps::NEW6.remove(key),
            Table::Kept => maps::FLOWS6.remove(key),
        };
    }

    #[inline(always)]
    fn put_ends(lookup: &mut FibLookup, key: &FlowKey<Self>) {
        lookup.family = AF_INET6;
        lookup.__bindgen_anon_3.ipv6_src = key.src.to_net_words();
        lookup.__bindgen_anon_4.ipv6_dst = key.dst.to_net_words();
    }

    #[inline(always)]
    fn put_router(lookup: &mut FibLookup, ifindex: u32) -> bool {
        let Some(value) = maps::DEVICES.get_ptr(ifindex) else { return false };
        // SAFETY: the pointer is a live map value, and an entry never changes.
        let router = unsafe { (*value).router }.to_net_words();
        lookup.ifindex = ifindex;
        lookup.__bindgen_anon_4.ipv6_dst = router;
        router != [0; 4]
    }

    #[inline(always)]
    fn scratch(side: Side) -> Option<*mut Scratch<Self>> {
        maps::SCRATCH6.get_ptr_mut(side as u32)
    }

    #[inline(always)]
    fn call_see(ctx: *mut __sk_buff, side: Side, start: Start) -> u64 {
        match (side, start) {
            (Side::Ingress, Start::Ethernet) => functions::lb_ingress6(ctx),
            (Side::Ingress, Start::Tagged(l3)) => functions::lb_tagged_ingress6(ctx, l3),
            (Side::Ingress, Start::Bare) => functions::lb_bare_ingress6(ctx),
            (Side::Egress, Start::Ethernet) => functions::lb_egress6(ctx),
            (Side::Egress, Start::Tagged(l3)) => functions::lb_tagged_egress6(ctx, l3),
            (Side::Egress, Start::Bare) => functions::lb_bare_egress6(ctx),
        }
    }

    #[inline(always)]
    fn call_translate(ctx: *mut __sk_buff, side: Side, l3: u32, way: Way) -> u64 {
        functions::lb_translate6(ctx, side as u32, l3, number(Verdict::Translate(way)))
    }

    #[inline(always)]
    fn call_begin(ctx: *mut __sk_buff, ifindex: u32) -> u64 {
        functions::lb_begin6(ctx, ifindex)
    }

    #[inline(always)]
    fn call_commit(former: u32) -> u64 {
        functions::lb_commit6(former)
    }

    #[inline(always)]
    fn call_reserve() -> u32 {
        functions::lb_reserve6()
    }

    #[inline(always)]
    fn call_refuse(ctx: *mut __sk_buff, side: Side, l3: u32, why: Why) -> i32 {
        rare::lb_refuse6(ctx, side as u32, l3, why.number())
    }

    #[inline(always)]
    fn call_icmp(ctx: *mut __sk_buff, side: Side, ifindex: u32) -> Verdict {
        verdict_of(rare::lb_icmp6(ctx, side as u32, ifindex))
    }

    #[inline(always)]
    fn call_retell(ctx: *mut __sk_buff, side: Side, l3: u32, forwards: bool) -> bool {
        rare::lb_retell6(ctx, side as u32, l3, forwards.into()) != 0
    }

    #[inline(always)]
    fn call_first(side: Side, id: u32) {
        rare::lb_first6(side as u32, id);
    }

    #[inline(always)]
    fn call_later(side: Side, id: u32) -> bool {
        rare::lb_later6(side as u32, id) != 0
    }
}

impl<A: Family> Flows<A> for BpfTables {
    #[inline(always)]
    fn flow(&self, key: &FlowKey<A>, into: &mut Flow<A>) -> Option<Table> {
        let before = EPOCH.load();
        let (value, table) = match A::entry(Table::Kept, key) {
            Some(value) => (value, Table::Kept),
            None => match A::entry(Table::New, key) {
                Some(value) => (value, Table::New),
                // It has gone from the one to the other between the two looks.
                None if EPOCH.load() != before => (A::entry(Table::Kept, key)?, Table::Kept),
                None => return None,
            },
        };
        // SAFETY: the pointer is a live map value; if the element is another key's by now, `Flow::is_of` tells.
        unsafe { copy_words(value.cast_const(), into) };
        Some(table)
    }

    #[inline(always)]
    fn put_flow(&self, table: Table, key: &FlowKey<A>, flow: &Flow<A>, replaces: bool) -> bool {
        let flags = if replaces { BPF_ANY } else { BPF_NOEXIST };
        A::put(table, key, flow, flags.into())
    }

    #[inline(always)]
    fn remove_flow(&self, table: Table, key: &FlowKey<A>) {
        A::remove(table, key);
    }

    #[inline(always)]
    fn move_on(&self, key: &FlowKey<A>, answers: &FlowKey<A>) {
        EPOCH.store(self.random().into());
        A::remove(Table::New, key);
        A::remove(Table::New, answers);
    }

    #[inline(always)]
    fn put_seen(&self, table: Table, key: &FlowKey<A>, now_s: u32) {
        if let Some(value) = A::entry(table, key) {
            // SAFETY: the pointer is a live map value.
            let seen = unsafe { &raw mut (*value).seen_s };
            // SAFETY: as above.
            unsafe { seen.write_volatile(now_s) };
        }
    }

    #[inline(always)]
    fn put_state(&self, table: Table, key: &FlowKey<A>, state: FlowState) {
        if let Some(value) = A::entry(table, key) {
            // SAFETY: the pointer is a live map value.
            let place = unsafe { &raw mut (*value).state };
            // SAFETY: as above.
            unsafe { place.write_volatile(state) };
        }
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        let now_ns = if maps::LB_HAS_COARSE_CLOCK.load() != 0 {
            // SAFETY: the helper has no arguments and no preconditions.
            unsafe { bpf_ktime_get_coarse_ns() }
        } else {
            // SAFETY: as above.
            unsafe { bpf_ktime_get_ns() }
        };
        #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
        let now_s = (now_ns >> 30) as u32;
        now_s
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<Place> {
        let value = maps::DEVICES.get_ptr(ifindex)?;
        // SAFETY: the pointer is a live map value, and an entry never changes.
        let Device { bits, controller, .. } = unsafe { &*value };
        Some(Place { bits: *bits, controller: *controller })
    }

    #[inline(always)]
    fn is_overheard(&self) -> bool {
        Skb::again(self.ctx.cast()).is_overheard()
    }

    #[inline(always)]
    fn source_at(&self, ifindex: u32) -> Option<A> {
        let value = maps::DEVICES.get_ptr(ifindex)?;
        // SAFETY: as above.
        A::of_device(unsafe { &*value })
    }

    #[inline(always)]
    fn route(&self, key: &FlowKey<A>) -> Route {
        route(self, key)
    }

    #[inline(always)]
    fn masquerade_port(&self, random: u32) -> Option<u16> {
        let count = self.config().masquerade_ports;
        if count == 0 {
            return None;
        }
        // Multiply and shift, as in `Run::pick`.
        let at = u64::from(random).wrapping_mul(u64::from(count)) >> 32;
        let at = at as u32;
        let value = maps::PORTS.get_ptr(at >> 2)?;
        // SAFETY: the pointer is a live map value of one word.
        let four = unsafe { value.cast::<u64>().read_volatile() };
        #[expect(clippy::cast_possible_truncation, reason = "the port's bits")]
        Some((four >> ((at & 3) << 4)) as u16)
    }

    #[inline(always)]
    fn allows(&self, service: ServiceId, client: Addr) -> bool {
        let key = Key::new(RangeKey::BITS, RangeKey { service, addr: client.octets });
        maps::SRC_RANGES.get(&key).is_some()
    }

    #[inline(always)]
    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        let value = maps::FRAGS.get_ptr(key)?;
        // SAFETY: the pointer is a live map value of one word; if the element is another key's by now,
        // `FragmentPorts::is_of` tells.
        let word = unsafe { value.cast::<u64>().read_volatile() };
        #[expect(clippy::cast_possible_truncation, reason = "the word's fields")]
        let (sport, dport, check) = (word as u16, (word >> 16) as u16, (word >> 32) as u32);
        Some(FragmentPorts { sport, dport, check })
    }

    #[inline(always)]
    fn put_ports(&self, key: &FragmentKey, ports: FragmentPorts) -> bool {
        maps::FRAGS.insert(key, ports, BPF_ANY.into()).is_ok()
    }

    #[inline(always)]
    fn may_tell(&self) -> bool {
        let Some(budget) = maps::BUDGET.get_ptr_mut(0) else { return false };
        // SAFETY: a live map value of this CPU, which no other program of this side uses before this one ends.
        let budget = unsafe { &mut *budget };
        budget.take(self.now_ms())
    }

    #[inline(always)]
    fn begin(&self, ifindex: u32, work: &mut Work<A>) -> Verdict {
        lend(work);
        verdict_of(A::call_begin(self.ctx.cast(), ifindex))
    }

    #[inline(always)]
    fn commit(&self, work: &mut Work<A>, former: Option<Table>) -> Verdict {
        lend(work);
        verdict_of(A::call_commit(table(former)))
    }

    #[inline(always)]
    fn reserve(&self, work: &mut Work<A>) -> bool {
        lend(work);
        A::call_reserve() != 0
    }

    #[inline(always)]
    fn first(&self, side: Side, work: &mut Work<A>, id: u32) {
        lend(work);
        A::call_first(side, id);
    }

    #[inline(always)]
    fn later(&self, side: Side, work: &mut Work<A>, id: u32) -> bool {
        lend(work);
        A::call_later(side, id)
    }
}

/// The function that is called next finds this memory by itself and changes it. Nobody tells LLVM, which may go by what it has seen of
/// memory that nobody else had a pointer to.
#[inline(always)]
fn lend<A>(work: &mut Work<A>) {
    black_box(ptr::from_mut(work));
}

/// A verdict in a number, as a function may return it that the verifier looks at by itself.
pub(crate) const fn number(verdict: Verdict) -> u64 {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Drop => 1,
        Verdict::Refuse => 2,
        Verdict::Translate(Way::On) => 3,
        Verdict::Translate(Way::Routed) => 4,
        Verdict::Translate(Way::Device { ifindex }) => (ifindex as u64) << 8 | 5,
    }
}

/// The verdict of a [`number`].
#[inline(always)]
pub(crate) const fn verdict_of(number: u64) -> Verdict {
    match number {
        0 => Verdict::Pass,
        1 => Verdict::Drop,
        2 => Verdict::Refuse,
        3 => Verdict::Translate(Way::On),
        4 => Verdict::Translate(Way::Routed),
        #[expect(clippy::cast_possible_truncation, reason = "as it was put in")]
        _ => Verdict::Translate(Way::Device { ifindex: (number >> 8) as u32 }),
    }
}

/// Where an entry is, in a number.
pub(crate) const fn table(table: Option<Table>) -> u32 {
    match table {
        None => 0,
        Some(Table::New) => 1,
        Some(Table::Kept) => 2,
    }
}

/// The table of a [`table()`].
#[inline(always)]
pub(crate) const fn table_of(number: u32) -> Option<Table> {
    match number {
        0 => None,
        1 => Some(Table::New),
        _ => Some(Table::Kept),
    }
}
