//! Every map and every read-only switch. Layouts: `lb_common::abi`. Sizes are the smallest useful ones; the agent
//! overrides them when it loads the object.
#![expect(unsafe_code, reason = "the loader finds read-only switches by their unmangled names")]

use crate::flows::Scratch;
use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage},
    macros::btf_map,
};
use lb_common::{
    abi::{
        Addr, Addr4, Address, Affinity, AffinityKey, Backend, Config, Device, Flow, FlowKey, FragmentKey,
        FragmentPorts, Frontend, FrontendKey, Netns, PortList, Probe, RangeKey, Service, Slot, SockTcp,
        SockUdp, Turn,
        maps::{AFFINITY_ENTRIES, MIN_ENTRIES, MMAPABLE, NO_PREALLOC},
        meta,
    },
    datapath::packet::refuse::Budget,
};

/// Where traffic is accepted.
#[btf_map(name = "lb_frontends")]
pub(crate) static FRONTENDS: HashMap<FrontendKey, Frontend, { MIN_ENTRIES as usize }, NO_PREALLOC> =
    HashMap::new();
/// What an address is to this node.
#[btf_map(name = "lb_addresses")]
pub(crate) static ADDRESSES: HashMap<Addr, Address, { MIN_ENTRIES as usize }, NO_PREALLOC> = HashMap::new();
/// Runs and policy of each service port and family.
#[btf_map(name = "lb_services")]
pub(crate) static SERVICES: Array<Service, { MIN_ENTRIES as usize }, MMAPABLE> = Array::new();
/// Backends as new connections need them.
#[btf_map(name = "lb_slots")]
pub(crate) static SLOTS: Array<Slot, { MIN_ENTRIES as usize }, MMAPABLE> = Array::new();
/// Life of each backend id.
#[btf_map(name = "lb_backends")]
pub(crate) static BACKENDS: Array<Backend, { MIN_ENTRIES as usize }, MMAPABLE> = Array::new();
/// Network namespaces that are special.
#[btf_map(name = "lb_netns")]
pub(crate) static NETNS: HashMap<u64, Netns, { MIN_ENTRIES as usize }, NO_PREALLOC> = HashMap::new();
/// The node's switches.
#[btf_map(name = "lb_config")]
pub(crate) static CONFIG: Array<Config, 1, MMAPABLE> = Array::new();
/// What a later agent must know of these maps. No program reads it; it is here so that one object defines all maps.
#[btf_map(name = "lb_meta")]
pub(crate) static META: Array<u64, { meta::ENTRIES as usize }, MMAPABLE> = Array::new();
/// What TCP sockets show as their peer.
#[btf_map(name = "lb_sock_tcp")]
pub(crate) static SOCK_TCP: SkStorage<SockTcp> = SkStorage::new();
/// What UDP sockets remember of their backends.
#[btf_map(name = "lb_sock_udp")]
pub(crate) static SOCK_UDP: SkStorage<SockUdp> = SkStorage::new();
/// Which backend clients with session affinity had last.
#[btf_map(name = "lb_affinity")]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, Affinity, { AFFINITY_ENTRIES as usize }> =
    LruHashMap::new();
/// Whose turn is next where a service gives connections to its backends in turn. It begins anew with each new program.
#[btf_map(name = "lb_turns")]
pub(crate) static TURNS: PerCpuArray<Turn, { Turn::ENTRIES as usize }> = PerCpuArray::new();
/// Devices whose packets are served, by interface index.
#[btf_map(name = "lb_devices")]
pub(crate) static DEVICES: HashMap<u32, Device, { MIN_ENTRIES as usize }, NO_PREALLOC> = HashMap::new();
/// Who may use load-balancer addresses of Services with source ranges.
#[btf_map(name = "lb_src_ranges")]
pub(crate) static SRC_RANGES: LpmTrie<RangeKey, u32, { MIN_ENTRIES as usize }> = LpmTrie::new();
/// Ports for masquerading.
#[btf_map(name = "lb_ports")]
pub(crate) static PORTS: Array<PortList, { PortList::ENTRIES as usize }, MMAPABLE> = Array::new();
/// IPv4 flows that have not proved both directions.
#[btf_map(name = "lb_new4")]
pub(crate) static NEW4: LruHashMap<FlowKey<Addr4>, Flow<Addr4>, 1> = LruHashMap::new();
/// IPv4 flows that have.
#[btf_map(name = "lb_flows4")]
pub(crate) static FLOWS4: HashMap<FlowKey<Addr4>, Flow<Addr4>, 1> = HashMap::new();
/// IPv6 flows that have not proved both directions.
#[btf_map(name = "lb_new6")]
pub(crate) static NEW6: LruHashMap<FlowKey<Addr>, Flow<Addr>, 1> = LruHashMap::new();
/// IPv6 flows that have.
#[btf_map(name = "lb_flows6")]
pub(crate) static FLOWS6: HashMap<FlowKey<Addr>, Flow<Addr>, 1> = HashMap::new();
/// Memory for the packet at hand, by side: more than a program's stack. Nothing of it is remembered.
#[btf_map(name = "lb_scratch4")]
pub(crate) static SCRATCH4: PerCpuArray<Scratch<Addr4>, 2> = PerCpuArray::new();
/// The same for IPv6.
#[btf_map(name = "lb_scratch6")]
pub(crate) static SCRATCH6: PerCpuArray<Scratch<Addr>, 2> = PerCpuArray::new();
/// Ports of datagrams that come in pieces.
#[btf_map(name = "lb_frags")]
pub(crate) static FRAGS: LruHashMap<FragmentKey, FragmentPorts, 1> = LruHashMap::new();
/// ICMP errors that this CPU has sent lately.
#[btf_map(name = "lb_budget")]
pub(crate) static BUDGET: PerCpuArray<Budget, 1> = PerCpuArray::new();
/// What is asked at a device that is being tested.
#[btf_map(name = "lb_probe")]
pub(crate) static PROBE: Array<Probe, 1, MMAPABLE> = Array::new();
/// Counters by reason.
#[btf_map(name = "lb_reasons")]
pub(crate) static REASONS: PerCpuArray<u64, { lb_common::abi::Reason::ALL.len() }> = PerCpuArray::new();

/// Cookie of the host's network namespace; 0 while the agent could not learn it, which means the initial one.
#[unsafe(no_mangle)]
pub(crate) static LB_HOST_NETNS: Global<u64> = Global::new(0);
/// Whether `bpf_set_retval` exists (5.18), so that a hook can choose the error that connect() returns.
#[unsafe(no_mangle)]
pub(crate) static LB_HAS_SET_RETVAL: Global<u32> = Global::new(0);
/// Whether `bpf_skc_to_mptcp_sock` exists (5.19) in a kernel with MPTCP: it finds the socket of the application behind a
/// subflow.
#[unsafe(no_mangle)]
pub(crate) static LB_HAS_MPTCP: Global<u32> = Global::new(0);
/// Whether `bpf_ktime_get_coarse_ns` exists (5.11).
#[unsafe(no_mangle)]
pub(crate) static LB_HAS_COARSE_CLOCK: Global<u32> = Global::new(0);
