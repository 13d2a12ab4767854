//! What tests, demo and benchmarks share: a small machine park made of kernel objects.
//!
//! ```text
//! Topology ── Node ── Pod            netns.rs, topology.rs    network namespaces, wired with ip(8)
//!              │       │
//!              └─ Cgroup ─ child      cgroup.rs                where programs are attached
//!                      │
//!                    Probe           probe/                   a child process in (namespace, cgroup) that
//!                                                             opens sockets when told to
//! Bpffs                              bpffs.rs                 where maps and links are pinned
//! ```
//!
//! Each of these values owns what it made and removes it when it is dropped, also during a panic. What a
//! killed run left behind is removed by the next one ([`names`]). Nothing here touches the root cgroup or a
//! namespace that it did not make. `README.md` in this package says which level of test answers which
//! question.

pub mod agent;
pub mod bench;
pub mod binary;
pub mod bpffs;
pub mod cgroup;
pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod differential;
pub mod expected;
pub mod fuzz;
pub mod http;
pub mod invariants;
pub mod names;
pub mod netns;
pub mod offload;
pub mod packets;
pub mod place;
pub mod privilege;
pub mod probe;
pub(crate) mod random;
pub mod scenario;
pub mod topology;
pub mod tun;
pub mod twin;
pub mod wait;

pub use agent::{Agent, Home};
pub use binary::binary;
pub use bpffs::Bpffs;
pub use cgroup::Cgroup;
pub use netns::Netns;
pub use place::{Place, Process};
pub use probe::Probe;
pub use topology::{Node, Pod, Topology};
pub use tun::Tunnel;
pub use wait::{wait_for, wait_until};
