//! The BPF side of the agent: loading the object, attaching its programs, and what of this node they must know.

pub mod addresses;
pub mod attach;
pub mod conntrack;
pub mod cookie;
pub mod devices;
pub mod hooks;
pub mod host;
pub mod links;
pub mod load;
pub mod ports;
pub mod selftest;
pub mod tc;
pub mod translated;
pub mod xdp;

/// The object that lb-ebpf was built into.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

/// A program and its hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Program {
    /// Its name in the object, which is also the name of its link's pin.
    pub name: &'static str,
    /// `BPF_CGROUP_*` (include/uapi/linux/bpf.h).
    pub attach_type: u32,
}

const fn program(name: &'static str, attach_type: u32) -> Program {
    Program { name, attach_type }
}

/// Every program for devices.
pub const DEVICE_PROGRAMS: [&str; 4] = ["lb_tc_ingress", "lb_tc_egress", "lb_ip_ingress", "lb_ip_egress"];

/// What packets of a device begin with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Layer {
    /// An Ethernet header.
    Ethernet,
    /// An IP header: of tunnels.
    Ip,
}

impl Layer {
    /// The programs for such a device: what comes from it, and what leaves by it.
    pub const fn programs(self) -> [&'static str; 2] {
        let [ingress, egress, ip_ingress, ip_egress] = DEVICE_PROGRAMS;
        match self {
            Self::Ethernet => [ingress, egress],
            Self::Ip => [ip_ingress, ip_egress],
        }
    }
}

/// Every program of cgroups, in the order in which they are attached: what shows the frontend comes before what hides it. They are
/// detached in the opposite order.
pub const PROGRAMS: [Program; 8] = [
    program("lb_recvmsg4", 19),
    program("lb_recvmsg6", 20),
    program("lb_getpeername4", 29),
    program("lb_getpeername6", 30),
    program("lb_sendmsg4", 14),
    program("lb_sendmsg6", 15),
    program("lb_connect4", 10),
    program("lb_connect6", 11),
];
