//! What the command line shares with lb-agent's build script and with lb-tests: where things are, how the BPF object is
//! built, what the tests' control plane is built with, and what a program is linked to.
//!
//! lb-agent's build script compiles this library before anything else, so it depends on `anyhow` alone.

pub mod control_plane;
pub mod ebpf;
pub mod go;
pub mod libraries;
pub mod linker;
pub mod paths;
pub mod toolchain;
