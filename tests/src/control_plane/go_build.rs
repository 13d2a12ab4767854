//! Builds Go programs once: those of the control plane, from the module `tests/control-plane`, and those of a real cluster.
//!
//! Results are kept in a folder for each state of the module (`target/control-plane/<hash of go.mod and go.sum>/`). A file with its final name
//! there is whole: a program is built under another name and renamed. A lock on the folder keeps parallel
//! runs from building twice.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use xtask::control_plane::{Program, fingerprint, module_folder, remedy};
use xtask::go::Go;

use super::daemon::die_with_this_thread;
use super::shared::NO_CLUSTER_VARIABLE;

/// How often a running build says that it is still there.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// What is built, and how.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// The name of the file.
    pub(crate) name: &'static str,
    /// The folder of the Go module.
    pub(crate) module: PathBuf,
    /// The package of the program.
    pub(crate) package: &'static str,
    /// Whether the program is the package's tests.
    pub(crate) is_test: bool,
}

impl From<Program> for Recipe {
    fn from(program: Program) -> Self {
        Self { name: program.name(), module: module_folder(), package: program.package(), is_test: false }
    }
}

impl Recipe {
    /// The folder below `cache` for what is built from the module as it is now.
    ///
    /// # Errors
    /// The module cannot be read.
    pub(crate) fn folder(&self, cache: &Path) -> Result<PathBuf> {
        Ok(cache.join(fingerprint(&self.module)?))
    }
}

/// The path of what `recipe` gives in `folder`, built first if needed.
///
/// # Errors
/// There is no usable Go, or the build fails.
pub(crate) fn ensure(recipe: &Recipe, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(recipe.name);
    if path.is_file() {
        return Ok(path);
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _lock = lock(folder)?;
    if !path.is_file() {
        build(recipe, folder)?;
    }
    Ok(path)
}

/// Waits until no other process builds in `folder`; the lock ends with the returned file.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        say(&format!("waiting for another build in {}", folder.display()));
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

fn build(recipe: &Recipe, folder: &Path) -> Result<()> {
    let go = Go::find().context(without_go())?;
    let program = recipe.name;
    let unfinished = folder.join(format!("{program}.unfinished"));
    say(&format!("building {program} (once; kept in {})", folder.display()));
    let start = Instant::now();
    let mut command = go.command(if recipe.is_test { "test" } else { "build" });
    if recipe.is_test {
        // Only built, and not looked through for mistakes: it is not ours.
        command.args(["-c", "-vet=off"]);
    }
    command
        .current_dir(&recipe.module)
        .args(["-trimpath", "-buildvcs=false", "-ldflags", &link_flags()?, "-o"])
        .arg(&unfinished)
        .arg(recipe.package)
        .env("CGO_ENABLED", "0")
        .stdin(Stdio::null());
    die_with_this_thread(&mut command);
    let child = command.spawn().context("cannot start go build")?;
    let status = wait_with_heartbeat(child, &format!("still building {program}"), start)?;
    if !status.success() {
        bail!("go build of {program} ended with {status}; its messages are above");
    }
    fs::rename(&unfinished, folder.join(program)).context("cannot rename what was built")?;
    say(&format!("built {program} in {} s", start.elapsed().as_secs()));
    Ok(())
}

/// Waits for `child`, writing `message` and the time since `start` now and then.
fn wait_with_heartbeat(mut child: Child, message: &str, start: Instant) -> Result<ExitStatus> {
    let (done, end) = mpsc::sync_channel(1);
    // The receiver is dropped only after it has received.
    let waiter = std::thread::spawn(move || drop(done.send(child.wait())));
    let status = loop {
        match end.recv_timeout(HEARTBEAT) {
            Ok(status) => break status,
            Err(RecvTimeoutError::Timeout) => say(&format!("{message}, {} s", start.elapsed().as_secs())),
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that waits for go build ended"),
        }
    };
    drop(waiter.join());
    status.context("cannot wait for go build")
}

/// Linker flags: no symbols, and the release that the programs report, which `go build` of a module does
/// not know.
fn link_flags() -> Result<String> {
    let module = fs::read_to_string(module_folder().join("go.mod")).context("cannot read go.mod")?;
    let version = kubernetes_version(&module).context("go.mod does not require k8s.io/kubernetes")?;
    Ok(format!("-s -w -X k8s.io/component-base/version.gitVersion={version}"))
}

/// The version of `k8s.io/kubernetes` that the text of a `go.mod` requires.
pub(crate) fn kubernetes_version(go_mod: &str) -> Option<&str> {
    let required = go_mod.lines().map(|line| line.trim().trim_start_matches("require "));
    required.into_iter().find_map(|line| line.strip_prefix("k8s.io/kubernetes ")?.split_whitespace().next())
}

/// What a person without Go and without assets can do.
fn without_go() -> String {
    format!(
        "these tests need a control plane: `cargo xtask test` downloads Go and builds one; or {}",
        remedy(&format!("{NO_CLUSTER_VARIABLE}=1"))
    )
}

/// Writes a line to standard error even when the test harness captures output: a build is too long to be
/// silent about.
fn say(message: &str) {
    // There is nobody to tell when standard error is closed.
    drop(io::stderr().write_all(format!("lb-tests: {message}\n").as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_names_the_release_and_every_program() {
        let go_mod = fs::read_to_string(module_folder().join("go.mod")).unwrap();
        assert!(kubernetes_version(&go_mod).unwrap().starts_with("v1."));
        for program in Program::ALL {
            assert!(
                go_mod.lines().any(|line| line.trim() == program.package()),
                "no tool line for {program}"
            );
        }
    }

    #[test]
    fn the_replaced_modules_are_of_the_same_release() {
        let go_mod = fs::read_to_string(module_folder().join("go.mod")).unwrap();
        let version = kubernetes_version(&go_mod).unwrap().replacen("v1.", "v0.", 1);
        for line in go_mod.lines().filter(|line| line.contains(" => ")) {
            assert!(line.ends_with(&version), "{line} is not {version}");
        }
    }

    #[test]
    fn the_line_without_go_names_every_way() {
        let line = without_go();
        for part in ["cargo xtask test", "https://go.dev/dl", "KUBEBUILDER_ASSETS", "LB_TESTS_NO_CLUSTER=1"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains('\n'));
    }
}
