//! The sources of `core`: there is no prebuilt one for BPF.

use anyhow::{Context as _, Result, bail, ensure};
use xtask::toolchain::Toolchain;

use crate::command;

/// Adds rustup's component `rust-src` to the pinned toolchain when it is missing. Returns whether it was.
pub(super) fn install(toolchain: &Toolchain) -> Result<bool> {
    if toolchain.has_rust_src() {
        return Ok(false);
    }
    if command::find("rustup").is_none() {
        bail!("{}", without_rustup(toolchain));
    }
    eprintln!("setup: adding rust-src to {}, for building `core` for BPF", toolchain.version);
    command::step(command::program("rustup").args(["component", "add", "rust-src"]))
        .context("rust-src cannot be added: rustup needs access to static.rust-lang.org")?;
    ensure!(toolchain.has_rust_src(), "rustup added rust-src, but not at {}", toolchain.rust_src().display());
    Ok(true)
}

fn without_rustup(toolchain: &Toolchain) -> String {
    format!(
        "rust-src is missing and there is no rustup to add it: install rustup (https://rustup.rs), or put the standard \
         library's sources of {} at {} (Debian and Ubuntu: the package rust-src of the same version as rustc)",
        toolchain.version,
        toolchain.rust_src().display()
    )
}
