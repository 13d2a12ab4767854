//! Builds the BPF object with the workspace's one toolchain.
//!
//! The toolchain is a stable one. `RUSTC_BOOTSTRAP=1` and `-Z build-std=core` are for this single command only:
//! there is no prebuilt `core` for BPF, and everything else is built without unstable features.

use std::{
    env,
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    linker::{self, State},
    paths,
    toolchain::Toolchain,
};

/// The target triple: every architecture this project knows is little-endian.
const TARGET: &str = "bpfel-unknown-none";

/// What cargo, clippy and users set for the outer build and what would change the inner one.
const FOREIGN: &[&str] = &[
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
    "DEBUG",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "TARGET",
];

/// The same, by the beginning of the name.
const FOREIGN_PREFIXES: &[&str] =
    &["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PROFILE_", "DEP_"];

/// Builds package `lb-ebpf` with the given cargo features and returns the path of the object.
///
/// Cargo decides whether there is anything to do. Its messages go to stderr; stdout stays untouched. When called from
/// a build script the object is for that build's architecture, else for this machine's: the programs read kernel
/// registers by name in tracing hooks, which is the only thing the architecture changes.
///
/// # Errors
/// One line that names `cargo xtask setup` when the linker or the sources of `core` are missing; otherwise that the
/// build failed, after cargo has said why.
pub fn build(features: &[&str]) -> Result<PathBuf> {
    check_prerequisites()?;
    let status = cargo("build", features)?
        .args(["--bins"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the build of the BPF object failed");
    let object = object();
    ensure!(object.is_file(), "cargo reported success but there is no {}", object.display());
    Ok(object)
}

/// Where [`build`] leaves the object.
#[must_use]
pub fn object() -> PathBuf {
    paths::bpf_target_dir().join(TARGET).join("release/lb-ebpf")
}

/// A `cargo VERB` for the BPF crate and target, with the features given: the caller adds its own arguments.
///
/// # Errors
/// When the architecture's name is not UTF-8.
pub fn cargo(verb: &str, features: &[&str]) -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if is_foreign(&name) {
            command.env_remove(name);
        }
    }
    command
        .current_dir(paths::workspace_root())
        .args([verb, "--package", "lb-ebpf", "--release", "--target", TARGET, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(paths::bpf_target_dir())
        .args(features.iter().flat_map(|feature| ["--features", feature]))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&architecture()?))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", paths::bpf_linker());
    Ok(command)
}

fn check_prerequisites() -> Result<()> {
    let toolchain = Toolchain::current()?;
    match linker::state(&toolchain)? {
        State::Ready => {}
        State::Missing => {
            bail!("the BPF linker is missing ({}): run `cargo xtask setup`", paths::bpf_linker().display())
        }
        State::Stale => {
            bail!("the BPF linker is not the one for {}: run `cargo xtask setup`", toolchain.version)
        }
    }
    if !toolchain.has_rust_src() {
        bail!("rust-src is missing ({}): run `cargo xtask setup`", toolchain.rust_src().display());
    }
    Ok(())
}

/// The architecture whose kernel will load the object, as `bpf_target_arch` spells it.
fn architecture() -> Result<String> {
    match env::var("CARGO_CFG_TARGET_ARCH") {
        Ok(name) => Ok(name),
        Err(env::VarError::NotPresent) => Ok(env::consts::ARCH.to_owned()),
        Err(error @ env::VarError::NotUnicode(_)) => Err(error).context("CARGO_CFG_TARGET_ARCH"),
    }
}

/// Debug information is what bpf-linker makes the BTF of, and maps and `verify` need BTF.
fn rustflags(architecture: &str) -> String {
    let architecture = format!("--cfg=bpf_target_arch=\"{architecture}\"");
    ["-Cdebuginfo=2", "-Clink-arg=--btf", &architecture].join("\x1f")
}

fn is_foreign(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    FOREIGN.contains(&name) || FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_separated_so_that_quotes_survive() {
        assert_eq!(
            rustflags("aarch64").split('\x1f').collect::<Vec<_>>(),
            ["-Cdebuginfo=2", "-Clink-arg=--btf", "--cfg=bpf_target_arch=\"aarch64\""]
        );
    }

    #[test]
    fn the_outer_build_does_not_leak_into_the_inner_one() {
        for name in ["RUSTC_WORKSPACE_WRAPPER", "CARGO_CFG_TARGET_ARCH", "CARGO_FEATURE_LOG", "RUSTFLAGS"] {
            assert!(is_foreign(OsStr::new(name)), "{name}");
        }
        // The job server and the user's proxy and home stay.
        for name in ["CARGO_MAKEFLAGS", "CARGO_HOME", "RUSTUP_TOOLCHAIN", "HTTPS_PROXY", "PATH"] {
            assert!(!is_foreign(OsStr::new(name)), "{name}");
        }
    }
}
