//! Takes packages of other Debian releases without touching the machine's own apt: sources, lists and cache lie in a
//! folder of ours. The machine's other settings (a proxy, for one) stay in force.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::command;

/// The keys of Debian's archive, where the package of the same name puts them on Debian and on Ubuntu.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where Debian says its releases are: the current ones, and those that have left the mirrors.
const ARCHIVES: [&str; 2] = ["http://deb.debian.org/debian", "http://archive.debian.org/debian"];

const NO_APT: &str = "kernels and qemu come by apt, from Debian or Ubuntu, and there is none here";

/// A program that comes as a package of the machine's own distribution.
///
/// Installs it, after saying so, unless `file` exists.
///
/// # Errors
/// When apt cannot install it; the message names the command to run by hand.
pub(super) fn install(package: &str, file: &Path, purpose: &str) -> Result<()> {
    if file.exists() {
        return Ok(());
    }
    eprintln!("vm: installing the package {package}, {purpose}");
    let program = command::find("apt-get").context(NO_APT)?;
    let apt = |arguments: &[&str]| {
        command::as_root(&program)?
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-qq", "-o", "Dpkg::Use-Pty=0"])
            .args(arguments)
            .output()
            .context("cannot run apt-get")
    };
    let install = ["install", "--yes", "--no-install-recommends", package];
    let mut output = apt(&install)?;
    if !output.status.success() {
        // A fresh machine has no package lists, or old ones.
        apt(&["update"])?;
        output = apt(&install)?;
    }
    ensure!(
        output.status.success() && file.exists(),
        "cannot install {package}: try `apt-get update && apt-get install {package}` as root; apt-get said: {}",
        errors(&output.stderr)
    );
    Ok(())
}

/// One Debian release, seen through a private apt.
#[derive(Debug)]
pub(super) struct Release {
    suite: &'static str,
    folder: PathBuf,
}

impl Release {
    /// Reads the package list of `suite` into `folder`, from the machine's own Debian mirror where there is one and else
    /// from Debian's.
    ///
    /// # Errors
    /// When no mirror has the release or none can be reached.
    pub(super) fn open(suite: &'static str, folder: &Path) -> Result<Self> {
        install(
            "debian-archive-keyring",
            Path::new(KEYRING),
            "which has the keys that Debian's kernels are signed with",
        )?;
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let release = Self { suite, folder: folder.to_owned() };
        // What is installed on this machine does not matter to the one in the virtual machine.
        release.write("status", "")?;
        let mut failures = Vec::new();
        for archive in archives()? {
            let line = format!("deb [arch=amd64 signed-by={KEYRING}] {archive} {suite} main\n");
            release.write("sources.list", &line)?;
            match release.run("apt-get", &["-eany", "update"]) {
                Ok(_) => return Ok(release),
                Err(error) => failures.push(format!("{archive}: {error:#}")),
            }
        }
        bail!(
            "no archive gives Debian's release {suite}. Is there a network, and does apt know its proxy? Tried:\n  {}",
            failures.join("\n  ")
        );
    }

    /// The first package of the name's beginning that `package` depends on: a metapackage leads to the real one.
    ///
    /// # Errors
    /// When the release has no such package.
    pub(super) fn dependency(&self, package: &str, beginning: &str) -> Result<String> {
        let said = self.run("apt-cache", &["depends", "--important", package])?;
        dependency(&said, beginning)
            .with_context(|| format!("Debian {} has no {package} that leads to a {beginning}", self.suite))
    }

    /// Fetches `package`, whose signature chain apt checks, and unpacks its files into `into`.
    ///
    /// # Errors
    /// When it cannot be fetched or unpacked.
    pub(super) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        self.run("apt-get", &["download", package])?;
        let entries = fs::read_dir(&self.folder)?.collect::<Result<Vec<_>, _>>()?;
        let archive = entries
            .into_iter()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download left no package in {}", self.folder.display()))?;
        let mut command = Command::new("dpkg-deb");
        finish(command.arg("-x").arg(archive).arg(into))?;
        Ok(())
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let place = |setting: &str, path: &str| format!("{setting}={}", self.folder.join(path).display());
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env("LC_ALL", "C");
        for setting in [
            place("Dir::State", ""),
            place("Dir::State::lists", "lists"),
            place("Dir::State::status", "status"),
            place("Dir::Cache", "cache"),
            place("Dir::Etc::SourceList", "sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            // The package list only.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The user `_apt` may not enter this folder.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        finish(command.arg("-q").args(arguments))
    }
}

/// Debian archives in the order in which they are tried, none twice.
fn archives() -> Result<Vec<String>> {
    let targets = ["indextargets", "--format", "$(COMPONENT) $(REPO_URI)", "Created-By: Packages"];
    let configured = finish(Command::new("apt-get").args(targets)).context(NO_APT)?;
    let mut archives = mirrors(&configured);
    for archive in ARCHIVES {
        if !archives.iter().any(|known| known == archive) {
            archives.push(archive.to_owned());
        }
    }
    Ok(archives)
}

/// From lines `COMPONENT URI` those that look like a mirror of Debian itself: component main, folder `debian`. One that
/// only looks so does no harm, because its packages are not signed by Debian.
fn mirrors(targets: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in targets.lines() {
        let Some(("main", archive)) = line.split_once(' ') else {
            continue;
        };
        let archive = archive.trim_end_matches('/').to_owned();
        if archive.ends_with("/debian") && !found.contains(&archive) {
            found.push(archive);
        }
    }
    found
}

fn dependency(said: &str, beginning: &str) -> Option<String> {
    let names = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::trim).find(|name| name.starts_with(beginning)).map(str::to_owned)
}

/// Runs a command and gives what it printed, or an error with its name and its complaints.
fn finish(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", errors(&output.stderr));
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed what is not UTF-8"))
}

/// The first of apt's lines that carry an error, or the last line of any other program.
fn errors(stderr: &[u8]) -> String {
    let said = String::from_utf8_lossy(stderr);
    let error = said.lines().find(|line| line.starts_with("E: "));
    error.or(said.lines().last()).unwrap_or("(nothing)").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_of_debian_are_told_from_other_sources() {
        let targets = "main http://mirror.example/debian/\n\
                       contrib http://mirror.example/debian/\n\
                       main http://mirror.example/debian/\n\
                       main http://mirror.example/debian-security/\n\
                       stable https://vendor.example/linux/debian/\n\
                       main https://other.example/apt/\n";
        assert_eq!(mirrors(targets), ["http://mirror.example/debian"]);
    }

    #[test]
    fn a_metapackage_leads_to_the_kernel() {
        let said = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-50-cloud-amd64\n";
        let found = dependency(said, "linux-image-");
        assert_eq!(found.as_deref(), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(dependency("linux-image-cloud-amd64\n", "linux-image-"), None);
    }

    #[test]
    fn the_error_is_picked_out_of_the_warnings() {
        let stderr =
            b"W: something small\nE: Could not resolve 'deb.debian.org'\nE: Some index files failed\n";
        assert_eq!(errors(stderr), "E: Could not resolve 'deb.debian.org'");
        assert_eq!(errors(b"a\nb\n"), "b");
    }
}
