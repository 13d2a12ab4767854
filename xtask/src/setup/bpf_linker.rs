//! Builds bpf-linker against the toolchain's own LLVM, into this repository's tools folder.
//!
//! No LLVM packages are needed, and the linker cannot drift from the compiler whose bitcode it reads.

use std::{fs, io, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, Result, bail};
use xtask::{
    linker::{self, State},
    paths,
    toolchain::Toolchain,
};

use crate::command;

/// Builds the linker unless the one for `toolchain` is there. Returns whether it did.
pub(super) fn install(toolchain: &Toolchain) -> Result<bool> {
    if linker::state(toolchain)? == State::Ready {
        return Ok(false);
    }
    let Some((library, major)) = linker::toolchain_llvm(toolchain)? else {
        bail!(
            "{} brings no LLVM library in {}, which bpf-linker must share: use rustup's toolchain (https://rustup.rs)",
            toolchain.version,
            toolchain.lib().display()
        );
    };
    eprintln!(
        "setup: building bpf-linker {} with the toolchain's LLVM {major} into {} (a minute or two, once)",
        linker::VERSION,
        paths::tools_dir().display()
    );
    build(toolchain, &library, major)
        .with_context(|| format!("bpf-linker {} cannot be built", linker::VERSION))?;
    command::output(command::program(paths::bpf_linker()).arg("--version"))
        .context("bpf-linker was built but does not run")?;
    forget_old_objects()?;
    fs::write(linker::stamp_file(), linker::stamp_for(toolchain))
        .with_context(|| format!("cannot write {}", linker::stamp_file().display()))?;
    Ok(true)
}

fn build(toolchain: &Toolchain, library: &Path, llvm_major: u32) -> Result<()> {
    let prefix = paths::tools_dir().join("llvm");
    let build = paths::tools_dir().join("build");
    link_llvm(&prefix.join("lib"), library)?;
    // The binary finds libLLVM by this path at run time. Encoded, because a home folder may contain a space.
    let rustflags = format!("-Clink-arg=-Wl,-rpath,{}", toolchain.lib().display());
    command::step(
        command::cargo("install")
            .args(["bpf-linker", "--version", linker::VERSION, "--locked", "--force", "--quiet"])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm_major}")])
            .arg("--root")
            .arg(paths::tools_dir())
            .env("LLVM_PREFIX", &prefix)
            .env("CARGO_TARGET_DIR", &build)
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags),
    )?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}

/// Gives the toolchain's library the name that the build looks for, in a folder of ours.
fn link_llvm(folder: &Path, library: &Path) -> Result<()> {
    let link = folder.join("libLLVM.so");
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", link.display()));
        }
        _ => {}
    }
    symlink(library, &link).with_context(|| format!("cannot create {}", link.display()))
}

/// Cargo does not see that the linker behind a path has changed, so what the old one made goes.
fn forget_old_objects() -> Result<()> {
    let objects = paths::bpf_target_dir();
    match fs::remove_dir_all(&objects) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", objects.display()))
        }
        _ => Ok(()),
    }
}
