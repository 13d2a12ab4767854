//! The Rust toolchain that builds this repository, as it is installed here.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

/// The compiler that cargo uses in this workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// What `rustc --version` prints: version, commit and date.
    pub version: String,
    /// The folder that holds the compiler's `bin` and `lib`.
    pub sysroot: PathBuf,
}

impl Toolchain {
    /// Asks `rustc`, in the workspace, so that rustup honours `rust-toolchain.toml`.
    ///
    /// # Errors
    /// When `rustc` cannot be run, for one because rustup lacks the pinned toolchain.
    pub fn current() -> Result<Self> {
        Ok(Self { version: rustc(&["--version"])?, sysroot: rustc(&["--print", "sysroot"])?.into() })
    }

    /// The folder of the standard library's sources, which `-Z build-std` compiles. It may be missing.
    #[must_use]
    pub fn rust_src(&self) -> PathBuf {
        self.lib().join("rustlib/src/rust/library")
    }

    /// Whether the standard library's sources are there for `-Z build-std`.
    #[must_use]
    pub fn has_rust_src(&self) -> bool {
        // The file that cargo asks for first.
        self.rust_src().join("Cargo.lock").is_file()
    }

    /// The folder of the compiler's shared libraries, its LLVM among them.
    #[must_use]
    pub fn lib(&self) -> PathBuf {
        self.sysroot.join("lib")
    }
}

fn rustc(args: &[&str]) -> Result<String> {
    let output = Command::new("rustc")
        .args(args)
        .current_dir(crate::paths::workspace_root())
        .output()
        .context("cannot run rustc")?;
    ensure!(
        output.status.success(),
        "rustc {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    let text = String::from_utf8(output.stdout).context("rustc answered in something that is not UTF-8")?;
    Ok(text.trim_end().to_owned())
}
