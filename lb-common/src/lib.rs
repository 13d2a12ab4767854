//! The contract between the BPF programs and the agent, and the logic that both can run.
//!
//! ```text
//! abi        keys, values, map names, reasons: the only definition of every word in a map
//! datapath   what a connect(), sendmsg() or recvmsg() experiences, as functions over two traits
//! hash       one that all nodes agree on
//! host       (feature `host`) those traits over plain memory, for tests and tools
//! ```
//!
//! `lb-ebpf` implements the traits of [`datapath`] over BPF maps and helpers; tests implement them over memory. The
//! decision between the two is the same machine-independent code. Nothing here allocates, reads a clock or can
//! panic: a panic path is a program that the kernel's verifier refuses.
//!
//! | feature | for | adds |
//! |---|---|---|
//! | `user` | agent | `aya::Pod` for every map key and value |
//! | `host` | tests, tools | in-memory tables and sockets |
#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

#[cfg(any(feature = "host", test))]
extern crate std;

pub mod abi;
pub mod datapath;
pub mod hash;
#[cfg(any(feature = "host", test))]
pub mod host;
