//! The tests' and benchmarks' real control plane: first whether it can be had, then having it.

use anyhow::{Context as _, Result, anyhow};
use xtask::{
    control_plane::{ASSETS_VARIABLE, Folders, Program, remedy},
    go::Go,
};

use crate::{command, setup};

/// Looks whether the programs are there or can be built, and gets Go if that is all that is missing: before anything else,
/// so that nobody waits for minutes to hear that they cannot. `leave_out` is the flag that does without them.
///
/// # Errors
/// One line: what is missing, and what to do about it.
pub(crate) fn prepare(leave_out: &str) -> Result<()> {
    let folders = Folders::current()?;
    decide(&folders, || Go::find().map(drop), setup::go::install, leave_out)
}

fn decide(
    folders: &Folders,
    find_go: impl FnOnce() -> Result<()>,
    install: impl FnOnce(&str) -> Result<()>,
    leave_out: &str,
) -> Result<()> {
    let mut missing = Vec::new();
    for program in Program::ALL {
        let found = folders.find(program);
        let found = found.map_err(|error| anyhow!("{error:#}; {leave_out} leaves out what needs it"))?;
        if found.is_none() {
            missing.push(program.name());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let Err(no_go) = find_go() else {
        return Ok(());
    };
    let missing = missing.join(", ");
    let why = match &folders.assets {
        Some(assets) => format!(
            "{ASSETS_VARIABLE}={} has no {missing}, which must be built with Go, and {no_go}",
            assets.display()
        ),
        None => format!("{missing} must be built with Go, and {no_go}"),
    };
    install(&why).map_err(|error| anyhow!("{why}; {error:#}: {}", remedy(leave_out)))
}

/// etcd, the API server and the rest, once; later runs find them and say nothing.
pub(crate) fn build() -> Result<()> {
    let mut command = command::cargo("run");
    command.args(["--quiet", "--package", "lb-tests", "--bin", "control-plane", "--", "build"]);
    command::step(&mut command)
        .context("there is no control plane to test against; --no-cluster leaves these tests out")
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs};

    use anyhow::bail;

    use super::*;

    const ALL: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy"];

    fn folders(assets: Option<&[&str]>, cached: &[&str]) -> (tempfile::TempDir, Folders) {
        let root = tempfile::tempdir().unwrap();
        let fill = |name: &str, programs: &[&str]| {
            let folder = root.path().join(name);
            fs::create_dir(&folder).unwrap();
            for program in programs {
                fs::write(folder.join(program), "").unwrap();
            }
            folder
        };
        let folders =
            Folders { assets: assets.map(|assets| fill("assets", assets)), cache: fill("cache", cached) };
        (root, folders)
    }

    /// What was decided, and whether a download was begun; `can_download` is what came of it.
    fn decided(folders: &Folders, can_download: bool) -> (Result<(), String>, bool) {
        let downloads = Cell::new(false);
        let install = |_why: &str| {
            downloads.set(true);
            if can_download { Ok(()) } else { bail!("Go cannot be downloaded (no network)") }
        };
        let result = decide(folders, || bail!("there is no Go here"), install, "--no-cluster");
        (result.map_err(|error| format!("{error:#}")), downloads.get())
    }

    #[test]
    fn programs_that_are_there_need_no_go() {
        for (assets, cached) in [
            (None, &ALL[..]),
            (Some(&ALL[..]), &[]),
            (Some(&["etcd", "kube-apiserver"]), &["kube-controller-manager", "kube-proxy"]),
        ] {
            let (_root, folders) = folders(assets, cached);
            assert_eq!(decided(&folders, false), (Ok(()), false), "{assets:?} {cached:?}");
        }
    }

    #[test]
    fn go_is_downloaded_when_something_is_to_be_built() {
        for (assets, cached) in [(None, &["etcd"][..]), (Some(&["etcd", "kube-apiserver"][..]), &[])] {
            let (_root, folders) = folders(assets, cached);
            assert_eq!(decided(&folders, true), (Ok(()), true), "{assets:?} {cached:?}");
        }
    }

    #[test]
    fn without_go_and_download_one_line_names_what_is_missing_and_every_way_out() {
        let assets = ["etcd", "kube-apiserver", "kube-proxy"];
        let (_root, folders) = folders(Some(&assets), &[]);
        let line = decided(&folders, false).0.unwrap_err();
        for part in [
            "/assets has no kube-controller-manager, which must be built with Go, and there is no Go here; Go cannot",
            "no network",
            "https://go.dev/dl",
            "KUBEBUILDER_ASSETS=",
            "--no-cluster",
        ] {
            assert!(line.contains(part), "{part} is not in: {line}");
        }
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn assets_without_an_api_server_are_refused_in_one_line() {
        let (_root, folders) = folders(Some(&["etcd"]), &ALL);
        let (refused, downloads) = decided(&folders, true);
        let line = refused.unwrap_err();
        assert!(line.contains("has no kube-apiserver") && line.contains("--no-cluster"), "{line}");
        assert!(!downloads && !line.contains('\n'), "{line}");
    }

    #[test]
    fn a_go_that_works_is_used() {
        let (_root, folders) = folders(None, &[]);
        decide(&folders, || Ok(()), |_why| bail!("not needed"), "--no-cluster").unwrap();
    }
}
