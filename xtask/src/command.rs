//! Running other programs so that a person sees what runs, and privileges are asked for only where needed.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::paths;

/// Where administrators' programs lie; a plain user's `PATH` on Debian has neither.
const ADMIN_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A program in the workspace root, with this repository's tools on its `PATH`.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(paths::workspace_root()).env("PATH", search_path());
    command
}

/// `cargo VERB`, with the cargo that started this program.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut command = program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` sets them for this program. A package's build script that watches one would run again.
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command.env("CARGO_TARGET_DIR", paths::target_dir()).arg(verb);
    command
}

/// A program as root: as it is for root, else through `sudo`, which keeps the environment.
///
/// # Errors
/// When this is neither root nor a machine with `sudo`.
pub(crate) fn as_root(name: &Path) -> Result<Command> {
    if is_root()? {
        return Ok(program(name));
    }
    ensure!(find("sudo").is_some(), "{} needs root: run this as root, or install sudo", name.display());
    let mut command = program("sudo");
    // sudo replaces PATH even when it keeps everything else.
    let mut path = OsString::from("PATH=");
    path.push(search_path());
    command.arg("--preserve-env").arg("env").arg(path).arg(name);
    Ok(command)
}

/// Says what runs on stderr, runs it and expects success.
///
/// # Errors
/// When it cannot be started or reports a failure.
pub(crate) fn step(command: &mut Command) -> Result<()> {
    say(command);
    let status = command.status().with_context(|| format!("cannot run {}", name(command)))?;
    ensure!(status.success(), "{} failed ({status})", describe(command));
    Ok(())
}

/// What a program prints, with its success expected and its stderr shown in the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", name(command)))?;
    if !output.status.success() {
        bail!("{} failed: {}", describe(command), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} prints something that is not UTF-8", name(command)))
}

/// Shows a command on stderr before it runs.
pub(crate) fn say(command: &Command) {
    eprintln!("+ {}", describe(command));
}

/// A command as a person would type it: paths of this repository are shown from its root.
pub(crate) fn describe(command: &Command) -> String {
    let root = format!("{}/", paths::workspace_root().display());
    let mut words = vec![Path::new(command.get_program()).file_name().unwrap_or(command.get_program())];
    words.extend(command.get_args());
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy().replace(&root, "")).collect();
    // The PATH that `as_root` hands through sudo is noise to a reader.
    words.into_iter().filter(|word| !word.starts_with("PATH=")).collect::<Vec<_>>().join(" ")
}

/// Where a program lies on [`program`]'s `PATH`.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Whether this process has root's user id.
pub(crate) fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    effective_uid(&status).map(|uid| uid == 0).context("/proc/self/status has no Uid line")
}

fn effective_uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn search_path() -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(paths::tools_dir().join("bin"))
        .chain(env::split_paths(&inherited))
        .chain(ADMIN_FOLDERS.iter().map(PathBuf::from));
    // Only a folder with a colon in its name cannot be joined; then the inherited value is all there is.
    env::join_paths(folders).unwrap_or(inherited)
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_id_is_the_second_of_four() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t1000\t1000\nGid:\t0\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }

    #[test]
    fn a_command_is_described_from_the_repository_root() {
        let mut command = Command::new("/usr/bin/cargo");
        command.arg("build").arg(paths::workspace_root().join("lb-agent"));
        assert_eq!(describe(&command), "cargo build lb-agent");
    }

    #[test]
    fn our_own_tools_come_first() {
        let first = env::split_paths(&search_path()).next();
        assert_eq!(first, Some(paths::tools_dir().join("bin")));
    }
}
