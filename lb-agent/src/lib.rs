//! The agent: from Kubernetes objects to BPF maps.
//!
//! ```text
//! API server     k8s/      model/      compile/    reconcile/   maps/      lb-ebpf
//! or a folder -> convert -> Cluster -> Desired  -> Plan      -> kernel  -> maps <- programs
//! of YAML        (pure)     State      (pure)      apply        memory     cgroup | tc
//! ```
//!
//! Meaning is pure, effects are thin, dependencies point left to right. One task owns the state and the maps; everything
//! else sends it messages and reads a published status.

pub mod app;
pub mod cli;
pub mod collector;
pub mod compile;
pub mod config;
pub mod datapath;
mod hash;
pub mod healer;
pub mod k8s;
pub mod leftovers;
pub mod maps;
pub mod model;
mod netlink;
pub mod observe;
pub mod owner;
pub mod reconcile;
