//! What the command line shares with lb-agent's build script and with lb-tests: where things are, how the BPF object is
//! built, and what the tests' control plane is built with.
//!
//! lb-agent's build script compiles this library before anything else, so it depends on `anyhow` alone.

pub mod control_plane;
pub mod ebpf;
pub mod go;
pub mod linker;
pub mod paths;
pub mod toolchain;
