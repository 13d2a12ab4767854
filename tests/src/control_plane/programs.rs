//! Where the programs of the control plane come from: `KUBEBUILDER_ASSETS`, or a build of our own that is
//! kept.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use xtask::control_plane::{ASSETS_VARIABLE, Folders, Program};

use super::go_build;

/// The path of `program`, built first if it is nowhere yet.
///
/// `KUBEBUILDER_ASSETS` wins when the folder has the program; a folder of `setup-envtest` has etcd and the
/// API server, and the other programs are then built. A build is kept in `target/control-plane/<hash>/` and
/// announces itself on standard error, past the capture of the test harness.
///
/// # Errors
/// `KUBEBUILDER_ASSETS` names a folder without etcd or API server; there is no usable Go; the build fails.
pub fn find(program: Program) -> Result<PathBuf> {
    let folders = Folders::current()?;
    if let Some(path) = folders.find(program)? {
        return Ok(path);
    }
    let built = go_build::ensure(&program.into(), &folders.cache);
    match folders.assets {
        Some(assets) => built.with_context(|| {
            format!("{ASSETS_VARIABLE}={} has no {program}, so it is built", assets.display())
        }),
        None => built,
    }
}
