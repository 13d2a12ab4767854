//! The Go that builds the tests' control plane: the machine's own, or the one that `cargo xtask test` downloads.

use std::{
    io,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::{control_plane, paths};

/// The release that is downloaded where there is none. The `go` line of `tests/control-plane/go.mod` must not be newer.
pub const VERSION: &str = "1.26.8";

/// Where an installation from go.dev has the tool; its instructions leave the `PATH` to the user.
const OUTSIDE_PATH: &str = "/usr/local/go/bin/go";

/// The folder of the downloaded Go: when it is there, it is whole.
#[must_use]
pub fn downloaded() -> PathBuf {
    paths::tools_dir().join(format!("go-{VERSION}"))
}

/// A Go that can build the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Go {
    program: PathBuf,
    is_ours: bool,
}

impl Go {
    /// The first one that can: of the `PATH`, of go.dev's usual place, the downloaded one.
    ///
    /// Each is asked, inside the module, for its version: an old one cannot read `go.mod`, one that may fetch newer toolchains
    /// does so now.
    ///
    /// # Errors
    /// One line: there is none, or what the last one said.
    pub fn find() -> Result<Self> {
        let own = downloaded().join("bin/go");
        Self::first(&[
            Self { program: "go".into(), is_ours: false },
            Self { program: OUTSIDE_PATH.into(), is_ours: false },
            Self { program: own, is_ours: true },
        ])
    }

    fn first(candidates: &[Self]) -> Result<Self> {
        let mut refused = "there is no Go here".to_owned();
        for go in candidates {
            match go.command("env").arg("GOVERSION").stdin(Stdio::null()).output() {
                Ok(output) if output.status.success() => return Ok(go.clone()),
                Ok(output) => {
                    let reason = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
                    refused = format!("{} is not usable ({reason})", go.program.display());
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => refused = format!("{} does not run ({error})", go.program.display()),
            }
        }
        bail!(refused)
    }

    /// `go VERB` inside the module.
    #[must_use]
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        // A go.work in a folder above would bring other versions.
        command.current_dir(control_plane::module_folder()).env("GOWORK", "off").arg(verb);
        if self.is_ours {
            // It is new enough, and a GOROOT left over from another installation would be taken for its own.
            command.env("GOTOOLCHAIN", "local").env_remove("GOROOT");
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;

    /// A program in `folder` that answers as `script` does.
    fn candidate(folder: &Path, name: &str, script: &str) -> Go {
        let program = folder.join(name);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Go { program, is_ours: false }
    }

    #[test]
    fn the_first_go_that_reads_the_module_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let old = candidate(folder.path(), "old", "echo 'go.mod:10: invalid go version' >&2; exit 1");
        let new = candidate(folder.path(), "new", "echo go1.26.0");
        let absent = Go { program: folder.path().join("absent"), is_ours: false };
        assert_eq!(Go::first(&[absent.clone(), old.clone(), new.clone()]).unwrap(), new);
        let refused = Go::first(&[old, absent.clone()]).unwrap_err().to_string();
        assert!(refused.contains("/old is not usable (go.mod:10: invalid go version)"), "{refused}");
        assert_eq!(Go::first(&[absent]).unwrap_err().to_string(), "there is no Go here");
    }

    #[test]
    fn the_downloaded_go_is_new_enough_for_the_module() {
        let module = fs::read_to_string(control_plane::module_folder().join("go.mod")).unwrap();
        let wanted = module.lines().find_map(|line| line.strip_prefix("go ")).unwrap();
        let numbers = |version: &str| version.split('.').map(|n| n.parse().unwrap()).collect::<Vec<u32>>();
        assert!(numbers(VERSION) >= numbers(wanted), "{VERSION} is older than {wanted}");
    }
}
