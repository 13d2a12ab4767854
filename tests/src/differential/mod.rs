//! The same packets for the programs in the kernel and for the pure pipeline on the host, which must agree on every one of them.
//!
//! ```text
//! generate.rs: sequences of packets by a seed ---> kernel.rs: BPF_PROG_TEST_RUN, the maps   in a namespace of world.rs
//!                                            '---> host.rs: lb_common over plain memory      over tables of world.rs
//! compare.rs: action, every byte, what was counted, every entry that is left    sums.rs: checksums, computed anew
//! ```
//!
//! What a program draws by chance is read from what it has written, and given to the host. Both have one clock: a sequence during which that
//! has gone on a tick between a program and the host counts for nothing.

mod compare;
mod generate;
mod host;
mod kernel;
mod packet;
mod run;
mod sums;
mod world;

pub use run::{Differential, Report};
