//! Where the workspace and its build products are.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The folder of the workspace's `Cargo.toml`.
#[must_use]
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the xtask package lies in a folder of the workspace")
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, else `target` of the workspace.
///
/// A relative `CARGO_TARGET_DIR` counts from the workspace root, which is where cargo runs in this repository's
/// own commands. (Cargo itself counts from its working directory, which a build script cannot learn.)
#[must_use]
pub fn target_dir() -> PathBuf {
    target_dir_from(env::var_os("CARGO_TARGET_DIR").map(PathBuf::from))
}

fn target_dir_from(configured: Option<PathBuf>) -> PathBuf {
    let relative = configured.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| "target".into());
    // `join` keeps an absolute path as it is.
    workspace_root().join(relative)
}

/// Programs that the tasks install for this repository only; nothing of the user's own is replaced.
#[must_use]
pub fn tools_dir() -> PathBuf {
    target_dir().join("tools")
}

/// The linker of BPF objects that `cargo xtask setup` builds.
#[must_use]
pub fn bpf_linker() -> PathBuf {
    tools_dir().join("bin/bpf-linker")
}

/// Cargo's target folder for the BPF build: a folder of its own, because the outer cargo holds the lock of the
/// usual one while it runs lb-agent's build script.
#[must_use]
pub fn bpf_target_dir() -> PathBuf {
    target_dir().join("bpf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_root_holds_the_toolchain_pin() {
        assert!(workspace_root().join("rust-toolchain.toml").is_file());
    }

    #[test]
    fn an_absolute_target_folder_is_taken_as_it_is() {
        assert_eq!(target_dir_from(Some("/elsewhere".into())), Path::new("/elsewhere"));
    }

    #[test]
    fn a_relative_target_folder_counts_from_the_workspace() {
        assert_eq!(target_dir_from(Some("out".into())), workspace_root().join("out"));
    }

    #[test]
    fn an_empty_or_missing_setting_means_target() {
        assert_eq!(target_dir_from(None), workspace_root().join("target"));
        assert_eq!(target_dir_from(Some(PathBuf::new())), workspace_root().join("target"));
    }
}
