//! Which BPF linker this repository uses, and whether the one that is installed still fits.
//!
//! bpf-linker must speak the LLVM of the compiler whose bitcode it reads. It is therefore linked to the toolchain's
//! own `libLLVM`, and a stamp beside it says which toolchain that was.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{paths, toolchain::Toolchain};

/// The version of the crate `bpf-linker`.
pub const VERSION: &str = "0.13.0";

/// How the installed linker stands to a toolchain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was built for exactly this toolchain.
    Ready,
    /// There is none.
    Missing,
    /// It is another version, or was built for another toolchain or folder.
    Stale,
}

/// Compares what is installed with what `toolchain` needs. Reads two files, runs nothing.
///
/// # Errors
/// When the stamp exists and cannot be read.
pub fn state(toolchain: &Toolchain) -> Result<State> {
    if !paths::bpf_linker().is_file() {
        return Ok(State::Missing);
    }
    let stamp = match fs::read_to_string(stamp_file()) {
        Ok(stamp) => Some(stamp),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", stamp_file().display())),
    };
    Ok(if stamp.is_some_and(|stamp| stamp == stamp_for(toolchain)) { State::Ready } else { State::Stale })
}

/// Where the stamp lies.
#[must_use]
pub fn stamp_file() -> PathBuf {
    paths::tools_dir().join("bpf-linker.stamp")
}

/// What the stamp of a linker for `toolchain` says.
#[must_use]
pub fn stamp_for(toolchain: &Toolchain) -> String {
    format!("bpf-linker {VERSION}\n{}\n{}\n", toolchain.version, toolchain.sysroot.display())
}

/// The toolchain's LLVM as a shared library, with its major version.
///
/// The name differs between compilers (`libLLVM.so.22.1-rust-1.95.0-stable`, `libLLVM-17-rust-1.78.0-stable.so`) and not
/// between architectures. Newer toolchains have both forms, one of them a linker script: the larger file is the library.
///
/// # Errors
/// When the toolchain's folder cannot be read.
pub fn toolchain_llvm(toolchain: &Toolchain) -> Result<Option<(PathBuf, u32)>> {
    let lib = toolchain.lib();
    let mut best: Option<(u64, PathBuf, u32)> = None;
    for entry in fs::read_dir(&lib).with_context(|| format!("cannot read {}", lib.display()))? {
        let path = entry?.path();
        let Some(major) = llvm_major(&path) else {
            continue;
        };
        let size = path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
        if best.as_ref().is_none_or(|(largest, ..)| size > *largest) {
            best = Some((size, path, major));
        }
    }
    Ok(best.map(|(_, path, major)| (path, major)))
}

fn llvm_major(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    let version = name.strip_prefix("libLLVM.so.").or_else(|| name.strip_prefix("libLLVM-"))?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_read_from_every_form_of_the_name() {
        for (name, major) in [
            ("libLLVM.so.22.1-rust-1.95.0-stable", Some(22)),
            ("libLLVM-22-rust-1.95.0-stable.so", Some(22)),
            ("libLLVM-17-rust-1.78.0-stable.so", Some(17)),
            ("libLLVM.so.19.1", Some(19)),
            ("libLLVM.so", None),
            ("librustc_driver-6108105cd7e839cf.so", None),
        ] {
            assert_eq!(llvm_major(Path::new(name)), major, "{name}");
        }
    }

    #[test]
    fn another_toolchain_or_folder_makes_the_linker_stale() {
        let ours = Toolchain { version: "rustc 1.95.0 (a 2026-04-14)".into(), sysroot: "/a".into() };
        let moved = Toolchain { sysroot: "/b".into(), ..ours.clone() };
        let newer = Toolchain { version: "rustc 1.96.0 (b 2026-05-26)".into(), ..ours.clone() };
        assert_ne!(stamp_for(&ours), stamp_for(&moved));
        assert_ne!(stamp_for(&ours), stamp_for(&newer));
    }
}
