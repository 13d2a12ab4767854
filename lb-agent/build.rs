//! Builds the BPF object and leaves it at `OUT_DIR/lb-ebpf.o`, where `include_bytes_aligned!` finds it.

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use xtask::{ebpf, paths};

/// What the object is made of, from the workspace root.
const SOURCES: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "lb-common/Cargo.toml",
    "lb-common/src",
    "lb-ebpf/Cargo.toml",
    "lb-ebpf/src",
    "rust-toolchain.toml",
];

fn main() -> ExitCode {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", paths::workspace_root().join(source).display());
    }
    println!("cargo::rerun-if-changed={}", paths::bpf_linker().display());
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever RUST_BACKTRACE says: the reader needs the command that helps, not our call stack.
            eprintln!("lb-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<()> {
    let features: &[&str] = if cfg!(feature = "bpf-log") { &["log"] } else { &[] };
    let object = ebpf::build(features)?;
    let embedded = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join("lb-ebpf.o");
    fs::copy(&object, &embedded)
        .with_context(|| format!("cannot copy {} to {}", object.display(), embedded.display()))?;
    Ok(())
}
