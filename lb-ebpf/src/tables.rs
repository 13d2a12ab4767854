//! `lb_common::datapath::tables::Tables` over the maps. Copies values out, never hands out map references.
#![expect(unsafe_code, reason = "map values are read through pointers that the helpers return")]

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, bpf_fib_lookup},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
};
use lb_common::{
    abi::{
        Addr, Address, Affinity, AffinityKey, Backend, BackendId, Config, Frontend, FrontendKey, Netns,
        Reason, Run, Service, ServiceFlags, ServiceId, Slot, Turn, Words as _,
    },
    datapath::tables::Tables,
};

use crate::maps;

/// The maps of this object, and where the program runs.
pub(crate) struct BpfTables {
    /// The program's context, for the kernel's routes; null where nobody asks for them.
    pub(crate) ctx: *mut c_void,
    /// The device of the packet at hand.
    pub(crate) ifindex: u32,
    /// Memory for the kernel's routes.
    pub(crate) lookup: *mut bpf_fib_lookup,
}

impl BpfTables {
    /// For programs that see no packets.
    pub(crate) const SOCKETS: Self = Self { ctx: ptr::null_mut(), ifindex: 0, lookup: ptr::null_mut() };
}

/// Loads one aligned word of a map value whole; the agent stores it whole.
///
/// # Safety
/// `value` points to a live map value of at least `index + 1` words with 8-byte alignment.
#[inline(always)]
unsafe fn load_word<T>(value: *const T, index: usize) -> u64 {
    // SAFETY: the caller's promise.
    let word = unsafe { value.cast::<u64>().add(index) };
    // SAFETY: the caller's promise. Volatile: the agent writes concurrently, and the value must be read once.
    unsafe { word.read_volatile() }
}

/// Copies a map value word by word. LLVM splits one volatile read of a struct into bytes.
///
/// # Safety
/// `value` points to a live map value with 8-byte alignment.
#[inline(always)]
pub(crate) unsafe fn copy_words<T>(value: *const T, into: &mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8, "words") };
    let into: *mut T = into;
    for index in 0..size_of::<T>() / 8 {
        // SAFETY: the caller's promise; `into` is as large.
        let word = unsafe { load_word(value, index) };
        // SAFETY: as above.
        let place = unsafe { into.cast::<u64>().add(index) };
        // SAFETY: as above.
        unsafe { place.write(word) };
    }
}

/// One word of a service, or nothing if the id is outside the array.
#[inline(always)]
fn service_word(service: ServiceId, index: usize) -> Option<u64> {
    let value = maps::SERVICES.get_ptr(service.index)?;
    // SAFETY: a value of this array has `Service::WORDS` words, and callers pass `Service::*_WORD`.
    Some(unsafe { load_word(value, index) })
}

impl Tables for BpfTables {
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        let value = maps::FRONTENDS.get_ptr(key)?;
        // SAFETY: a `Frontend` is one aligned word.
        Some(Frontend::from_word(unsafe { load_word(value, 0) }))
    }

    #[inline(always)]
    fn address(&self, addr: &Addr) -> Option<Address> {
        let value = maps::ADDRESSES.get_ptr(addr)?;
        // SAFETY: the pointer is a live map value; the element's memory stays a valid value even if it is reused.
        Some(unsafe { value.read_volatile() })
    }

    #[inline(always)]
    fn cluster_run(&self, service: ServiceId) -> Option<Run> {
        service_word(service, Service::CLUSTER_WORD).map(Run::from_word)
    }

    #[inline(always)]
    fn local_run(&self, service: ServiceId) -> Option<Run> {
        service_word(service, Service::LOCAL_WORD).map(Run::from_word)
    }

    #[inline(always)]
    fn policy(&self, service: ServiceId) -> Option<(ServiceFlags, u32)> {
        let word = service_word(service, Service::FLAGS_WORD)?;
        let service = Service::from_words([0, 0, word, 0]);
        Some((service.flags, service.affinity_s))
    }

    #[inline(always)]
    fn service_generation(&self, service: ServiceId) -> Option<u32> {
        let word = service_word(service, Service::GENERATION_WORD)?;
        Some(Service::from_words([0, 0, 0, word]).generation)
    }

    #[inline(always)]
    fn slot(&self, slot: u32) -> Option<Slot> {
        // Plain copy: a slot is written only while no run contains it.
        maps::SLOTS.get(slot).copied()
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend> {
        let value = maps::BACKENDS.get_ptr(id.index)?;
        // SAFETY: a `Backend` is one aligned word.
        Some(Backend::from_words([unsafe { load_word(value, 0) }]))
    }

    #[inline(always)]
    fn netns(&self, cookie: u64) -> Option<Netns> {
        let value = maps::NETNS.get_ptr(cookie)?;
        // SAFETY: the pointer is a live map value.
        Some(unsafe { value.read_volatile() })
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey, into: &mut Affinity) -> bool {
        let Some(value) = maps::AFFINITY.get_ptr(key) else { return false };
        // SAFETY: the pointer is a live map value; if the element is another key's by now, `Affinity::is_of` tells.
        unsafe { copy_words(value, into) };
        true
    }

    #[inline(always)]
    fn put_affinity(&self, key: &AffinityKey, entry: &Affinity, replaces: bool) -> bool {
        let flags = if replaces { BPF_ANY } else { BPF_NOEXIST };
        maps::AFFINITY.insert(key, entry, flags.into()).is_ok()
    }

    #[inline(always)]
    fn touch_affinity(&self, key: &AffinityKey, now_ms: u64) {
        if let Some(value) = maps::AFFINITY.get_ptr_mut(key) {
            // SAFETY: the pointer is a live map value.
            let seen_ms = unsafe { &raw mut (*value).seen_ms };
            // SAFETY: as above; what a write to another key's element does, `Affinity` says.
            unsafe { seen_ms.write_volatile(now_ms) };
        }
    }

    #[inline(always)]
    fn now_ms(&self) -> u64 {
        // SAFETY: the helper has no arguments and no preconditions.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        now_ns / 1_000_000
    }

    #[inline(always)]
    fn config(&self) -> Config {
        let Some(value) = maps::CONFIG.get_ptr(0) else {
            return Config::OFF;
        };
        // SAFETY: a `Config` is `Config::WORDS` aligned words.
        let first = unsafe { load_word(value, 0) };
        // SAFETY: as above.
        let second = unsafe { load_word(value, 1) };
        // SAFETY: as above.
        let third = unsafe { load_word(value, 2) };
        // SAFETY: as above.
        let fourth = unsafe { load_word(value, 3) };
        // SAFETY: as above.
        let fifth = unsafe { load_word(value, 4) };
        // SAFETY: as above.
        let sixth = unsafe { load_word(value, 5) };
        Config::from_words([first, second, third, fourth, fifth, sixth])
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no arguments and no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn turn(&self, service: ServiceId) -> u32 {
        let Some(value) = maps::TURNS.get_ptr_mut(Turn::index(service)) else { return self.random() };
        // SAFETY: the pointer is this CPU's live value.
        let now = unsafe { value.read() };
        let (turn, next) = now.take(service, || self.random());
        // A program that interrupts this one between the two may have the same turn.
        // SAFETY: as above.
        unsafe { value.write(next) };
        turn
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        if let Some(counter) = maps::REASONS.get_ptr_mut(reason as u32) {
            // SAFETY: the pointer is this CPU's live value.
            let now = unsafe { counter.read() };
            // A program that interrupts this one between the two may lose one count.
            // SAFETY: as above.
            unsafe { counter.write(now.wrapping_add(1)) };
        }
    }
}
