//! What traffic experiences, as pure functions over two small traits.
//!
//! [`tables::Tables`] is the world (maps, randomness, clock, counters), [`sock::Socket`] is the socket at hand. The BPF
//! programs implement them over kernel helpers, [`crate::host`] over memory.

pub mod packet;
pub mod select;
#[cfg(test)]
mod select_tests;
pub mod sock;
#[cfg(test)]
mod sock_affinity_tests;
#[cfg(test)]
mod sock_policy_tests;
#[cfg(test)]
mod sock_props;
#[cfg(test)]
mod sock_tests;
#[cfg(test)]
mod sock_udp_tests;
pub mod tables;
