//! Programs that `cargo xtask lint` takes from crates.io, at versions written here, into this repository's tools folder.

use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use xtask::paths;

use crate::command;

/// A program that `cargo install` builds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CargoTool {
    /// The crate on crates.io.
    pub(crate) package: &'static str,
    /// The program it installs.
    pub(crate) binary: &'static str,
    /// The exact version.
    pub(crate) version: &'static str,
    /// Further arguments of `cargo install`.
    pub(crate) args: &'static [&'static str],
}

impl CargoTool {
    /// Builds the program unless this version of it is there.
    ///
    /// # Errors
    /// When it cannot be built, for one because crates.io is out of reach.
    pub(crate) fn install(&self) -> Result<()> {
        if self.is_installed()? {
            return Ok(());
        }
        let build = paths::tools_dir().join("build");
        eprintln!("setup: building {} {} (a minute or two, once)", self.package, self.version);
        command::step(
            command::cargo("install")
                .args([self.package, "--version", self.version, "--locked", "--quiet"])
                // Built once and run for a second: an optimised build would cost more than it ever saves.
                .args(["--profile", "dev"])
                .args(self.args)
                .arg("--root")
                .arg(paths::tools_dir())
                .env("CARGO_PROFILE_DEV_DEBUG", "false")
                .env("CARGO_TARGET_DIR", &build),
        )
        .with_context(|| format!("{} {} cannot be built", self.package, self.version))?;
        // Hundreds of megabytes that nothing reads again.
        fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
        ensure!(self.is_installed()?, "cargo installed {}, but not version {}", self.package, self.version);
        Ok(())
    }

    fn is_installed(&self) -> Result<bool> {
        let list = paths::tools_dir().join(".crates.toml");
        let list = match fs::read_to_string(&list) {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", list.display())),
        };
        let binary = paths::tools_dir().join("bin").join(self.binary);
        Ok(lists(&list, self.package, self.version) && binary.is_file())
    }
}

/// Whether cargo's list of what it installed names this package in this version.
fn lists(list: &str, package: &str, version: &str) -> bool {
    list.lines().any(|line| line.starts_with(&format!("\"{package} {version} ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_version_of_the_same_package_counts() {
        let list = "[v1]\n\"typos-cli 1.52.0 (registry+https://github.com/rust-lang/crates.io-index)\" = [\"typos\"]\n";
        assert!(lists(list, "typos-cli", "1.52.0"));
        assert!(!lists(list, "typos-cli", "1.5"));
        assert!(!lists(list, "typos", "1.52.0"));
    }
}
