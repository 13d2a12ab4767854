//! Names of the maps: at most 15 characters, which is what the kernel keeps.

/// [`super::FrontendKey`] -> [`super::Frontend`]
pub const FRONTENDS: &str = "lb_frontends";
/// [`super::Addr`] -> [`super::Address`]
pub const ADDRESSES: &str = "lb_addresses";
/// Service id -> [`super::Service`]
pub const SERVICES: &str = "lb_services";
/// Slot -> [`super::Slot`]
pub const SLOTS: &str = "lb_slots";
/// Backend id -> [`super::Backend`]
pub const BACKENDS: &str = "lb_backends";
/// Netns cookie (u64) -> [`super::Netns`]
pub const NETNS: &str = "lb_netns";
/// 0 -> [`super::Config`]
pub const CONFIG: &str = "lb_config";
/// [`super::meta`] index -> u64
pub const META: &str = "lb_meta";
/// Socket -> [`super::SockTcp`]
pub const SOCK_TCP: &str = "lb_sock_tcp";
/// Socket -> [`super::SockUdp`]
pub const SOCK_UDP: &str = "lb_sock_udp";
/// [`super::AffinityKey`] -> [`super::Affinity`]
pub const AFFINITY: &str = "lb_affinity";
/// Interface index (u32) -> [`super::Device`]
pub const DEVICES: &str = "lb_devices";
/// [`super::RangePrefix`] -> 1 (u32)
pub const SRC_RANGES: &str = "lb_src_ranges";
/// Number -> [`super::PortList`]
pub const PORTS: &str = "lb_ports";
/// [`super::FlowKey`] -> [`super::Flow`], IPv4, not proven
pub const NEW4: &str = "lb_new4";
/// The same for IPv6.
pub const NEW6: &str = "lb_new6";
/// [`super::FlowKey`] -> [`super::Flow`], IPv4, proven
pub const FLOWS4: &str = "lb_flows4";
/// The same for IPv6.
pub const FLOWS6: &str = "lb_flows6";
/// [`super::FragmentKey`] -> [`super::FragmentPorts`]; each loaded object has its own
pub const FRAGMENTS: &str = "lb_frags";
/// [`super::Reason`] -> u64 per CPU
pub const REASONS: &str = "lb_reasons";

/// Every map, in the order in which tools list them.
pub const ALL: [&str; 19] = [
    FRONTENDS, ADDRESSES, SERVICES, SLOTS, BACKENDS, NETNS, CONFIG, META, SOCK_TCP, SOCK_UDP, AFFINITY,
    DEVICES, SRC_RANGES, PORTS, NEW4, NEW6, FLOWS4, FLOWS6, REASONS,
];

/// Entries of every agent-written map of a small cluster; larger maps are multiples of it.
pub const MIN_ENTRIES: u32 = 4096;

/// Entries of [`AFFINITY`] unless the agent is told otherwise: 250 pods that use 65 Services with affinity each. The least
/// recently used one makes room.
pub const AFFINITY_ENTRIES: u32 = 16_384;

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): entries take memory only when they exist.
pub const NO_PREALLOC: usize = 1;
/// `BPF_F_MMAPABLE`: the agent writes the array through memory instead of system calls; kernel 5.5.
pub const MMAPABLE: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_keeps_every_name_whole() {
        for name in ALL {
            assert!(name.len() <= 15, "{name}");
            assert!(name.starts_with("lb_"), "{name}");
        }
    }
}
