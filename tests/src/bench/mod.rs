//! What the benchmarks share.

pub mod bpf;
pub mod cluster;
pub mod frames;
pub mod generator;
pub mod lane;
mod lookups;
pub mod path;
pub mod peers;
pub mod plot;
pub mod report;
pub mod requests;
pub mod runs;
pub mod stats;
pub mod wire;
pub mod worker;
pub mod xdp;
