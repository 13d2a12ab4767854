//! `aya::Pod` for what the agent reads and writes through the bpf() system call.
#![expect(
    unsafe_code,
    reason = "Pod is an unsafe trait; this file is the only place in the crate that implements it"
)]

use super::{
    Addr, Addr4, Address, Affinity, AffinityKey, Backend, Config, Device, Flow, FlowKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Netns, PortList, RangeKey, RangePrefix, Service, Slot,
};

/// Shows at build time that a type has no implicit padding: its size is the sum of its fields.
macro_rules! pod {
    ($name:ty, $fields:expr) => {
        const _: () = assert!(size_of::<$name>() == $fields, "padding must be a field");
        // SAFETY: repr(C), every field is a plain integer or an array of them, any bit pattern is a value, and the
        // assertion above excludes padding, so all bytes are initialised.
        unsafe impl aya::Pod for $name {}
    };
}

pod!(Addr, 16);
pod!(Address, 4);
pod!(FrontendKey, 16 + 2 + 1 + 1 + 4);
pod!(Frontend, 4 + 1 + 1 + 2);
pod!(Netns, 4);
pod!(Config, 2 + 2 + 4 + 4 + 4 + 4 + 4 + 4 + 4 + 8 + 8);
pod!(Service, 8 + 8 + 4 + 4 + 4 + 4);
pod!(Slot, 16 + 2 + 2 + 4 + 4 + 4);
pod!(Backend, 4 + 1 + 1 + 2);
pod!(Device, 16 + 16 + 4 + 4 + 4 + 4);
pod!(PortList, 8);
pod!(RangeKey, 4 + 16);
pod!(RangePrefix, 4 + 4 + 16);
pod!(FlowKey<Addr4>, 4 + 4 + 2 + 2 + 1 + 3);
pod!(FlowKey<Addr>, 16 + 16 + 2 + 2 + 1 + 3);
pod!(Flow<Addr4>, 4 + 4 + 2 + 2 + 4 + 4 + 4 + 4 + 4 + 1 + 1 + 1 + 1 + 4);
pod!(Flow<Addr>, 16 + 16 + 2 + 2 + 4 + 4 + 4 + 4 + 4 + 1 + 1 + 1 + 1 + 4);
pod!(AffinityKey, 16 + 4 + 4);
pod!(FragmentKey, 16 + 16 + 4 + 1 + 3);
pod!(FragmentPorts, 2 + 2 + 4);
pod!(Affinity, 8 + 16 + 2 + 2 + 4 + 4 + 4);
