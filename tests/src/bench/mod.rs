//! What the benchmarks share.

pub mod cluster;
pub mod lane;
pub mod peers;
pub mod plot;
pub mod report;
pub mod stats;
pub mod worker;
