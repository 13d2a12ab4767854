//! `cargo xtask setup`: what a build and the tests need beyond rustup's toolchain.
//!
//! Every part looks first, says what it will do before it does it, and does nothing when nothing is missing. The other
//! verbs call [`run`] themselves.

mod bpf_linker;
pub(crate) mod cargo_tool;
pub(crate) mod go;
mod packages;
mod rust_src;

use anyhow::{Context as _, Result};
use xtask::toolchain::Toolchain;

/// Installs what is missing. Returns whether anything was.
///
/// # Errors
/// The first thing that cannot be had, and how to get it.
pub(crate) fn run() -> Result<bool> {
    let toolchain =
        Toolchain::current().context("the Rust toolchain of rust-toolchain.toml is not usable")?;
    let packages = packages::install(packages::NEEDS)?;
    let sources = rust_src::install(&toolchain)?;
    let linker = bpf_linker::install(&toolchain)?;
    Ok(packages || sources || linker)
}

/// Installs a C++ compiler: of all that is built here only libFuzzer needs one.
///
/// # Errors
/// When it cannot be had, and how to get it.
pub(crate) fn cplusplus() -> Result<()> {
    packages::install(&[packages::CPLUSPLUS]).map(drop)
}

/// Installs what nodes of `cargo xtask cluster` consist of.
///
/// # Errors
/// When it cannot be had, and how to get it.
pub(crate) fn cluster() -> Result<()> {
    packages::install(packages::CLUSTER).map(drop)
}

/// The verb: like [`run`], but says so when there is nothing to do.
pub(crate) fn verb() -> Result<()> {
    if !run()? {
        eprintln!("setup: everything is here");
    }
    Ok(())
}
