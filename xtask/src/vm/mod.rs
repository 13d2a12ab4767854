//! Runs tests of lb-tests under an older kernel, in a virtual machine.
//!
//! ```text
//! kernel.rs    Debian's kernel, by apt.rs          ──┐
//! programs     the tests, as cargo builds them     ──┼─> image.rs ──> qemu.rs ──> Report
//! modules.rs   kernel modules in loading order     ──┤   (cpio.rs)
//! ```
//!
//! The guest is emulated, so neither virtualisation of the processor nor root is needed to run it. What has been
//! fetched stays in `vm/` of the target folder; later runs need no network.

mod apt;
mod cpio;
mod image;
mod kernel;
mod modules;
mod qemu;

use std::{
    env::consts,
    fs,
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::paths;

use crate::programs::{self, Programs};

/// How long a guest may run: emulation is many times slower than the machine itself, and machines differ.
const LIMIT: Duration = Duration::from_mins(36);

/// What ran in a guest, and passed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How many tests.
    pub(crate) tests: u64,
    /// Those that passed without doing anything, each with the reason it gave.
    pub(crate) not_run: Vec<String>,
    /// From the start of the machine to its end.
    pub(crate) took: Duration,
}

/// The versions that [`run`] knows, oldest first.
pub(crate) fn kernels() -> impl Iterator<Item = &'static str> {
    kernel::KERNELS.iter().map(|kernel| kernel.version)
}

/// Gets Debian's kernel `version` (one of [`kernels`]) and what emulates a machine, unless they are there: [`run`] would do it.
///
/// # Errors
/// When they cannot be had; the message says why.
pub(crate) fn fetch(version: &str) -> Result<()> {
    files(version)?;
    qemu::install()
}

/// The kernel, and the folder that everything about it is kept in.
fn files(version: &str) -> Result<(kernel::Files, PathBuf)> {
    ensure!(consts::ARCH == "x86_64", "other kernels are for x86_64 only, and this is {}", consts::ARCH);
    let kernel = kernel::Kernel::named(version)?;
    let folder = paths::target_dir().join("vm").join(version);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok((kernel.files(&folder)?, folder))
}

/// Builds the named test targets of lb-tests, the programs they start, and the first process.
///
/// # Errors
/// When cargo fails, for one because there is no such test target.
pub(crate) fn build(tests: &[String]) -> Result<Programs> {
    // One command for all, so that features are resolved once and nothing is built in two ways.
    let mut arguments = vec!["--package", "lb-tests", "--package", "lb-agent"];
    for binary in image::STARTED_BY_TESTS.into_iter().chain([image::INIT]) {
        arguments.extend(["--bin", binary]);
    }
    for test in tests {
        arguments.extend(["--test", test]);
    }
    programs::build(&arguments)
}

/// Boots Debian's kernel `version` (one of [`kernels`]) and runs the named test targets of lb-tests in it, as root.
///
/// `arguments` go to each test program: a word that the names of tests must contain, `--nocapture` and so on. What the
/// guest prints goes to `out` while it is printed; remarks of this function go to stderr.
///
/// `lb-agent` and `lb-probe` lie one folder above the tests, as under cargo. Tests find bpffs at
/// `/sys/fs/bpf`, cgroup v2 at `/sys/fs/cgroup`, no files of the workspace and no network but their own. Packages that
/// are missing on this machine are installed.
///
/// # Errors
/// When a test fails, nothing was run at all, the guest stops early or hangs, or something needed cannot be had:
/// the message names it and says how to get it.
pub(crate) fn run(
    version: &str,
    programs: &Programs,
    tests: &[String],
    arguments: &[String],
    out: &mut impl Write,
) -> Result<Outcome> {
    ensure!(!tests.is_empty(), "no test to run under kernel {version}");
    let (kernel, folder) = files(version)?;
    qemu::install()?;
    let found = tests.iter().map(|name| Ok((name.clone(), programs.test(name)?.path.clone())));
    let found = found.collect::<Result<Vec<_>>>()?;
    let contents = image::Contents { programs, tests: &found, arguments, kernel: &kernel };
    let initramfs = image::write(&contents, &folder)?;
    let size = initramfs.metadata().map_or(0, |file| file.len()) >> 20;
    eprintln!("vm: starting kernel {} with {size} MiB of files", kernel.release);
    let start = Instant::now();
    let report = qemu::run(&kernel, &initramfs, LIMIT, out)?;
    let took = start.elapsed();
    eprintln!("vm: kernel {} ran for {:.1} s", kernel.release, took.as_secs_f64());
    judge(report, tests, took)
}

/// Whether everything ran that was asked for, and passed.
fn judge(report: qemu::Report, tests: &[String], took: Duration) -> Result<Outcome> {
    if let Some(error) = &report.error {
        bail!("the guest could not be set up: {error}");
    }
    ensure!(report.is_complete, "the guest stopped before its tests were done: see its last lines above");
    for test in tests {
        ensure!(report.results.iter().any(|(name, _)| name == test), "the guest did not report on {test}");
    }
    let failed = report.results.iter().filter(|(_, code)| *code != 0);
    let mut failed: Vec<String> = failed.map(|(name, code)| format!("{name} (exit status {code})")).collect();
    if !failed.is_empty() {
        failed.extend(report.failures);
        bail!("failed in the guest: {}", failed.join(", "));
    }
    ensure!(report.tests > 0, "no test ran in the guest: does the filter match any?");
    Ok(Outcome { tests: report.tests, not_run: report.not_run, took })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> qemu::Report {
        qemu::Report {
            results: vec![("sockets".into(), 0)],
            tests: 4,
            is_complete: true,
            ..qemu::Report::default()
        }
    }

    fn verdict(report: qemu::Report) -> String {
        judge(report, &["sockets".into()], Duration::ZERO)
            .map_or_else(|error| error.to_string(), |_| "passed".into())
    }

    #[test]
    fn a_run_passes_only_if_everything_ran_and_passed() {
        assert_eq!(verdict(good()), "passed");
        let results = vec![("sockets".into(), 101)];
        let failed = qemu::Report { results, failures: vec!["scope::a".into()], ..good() };
        assert_eq!(verdict(failed), "failed in the guest: sockets (exit status 101), scope::a");
        let silent = qemu::Report { results: Vec::new(), ..good() };
        assert_eq!(verdict(silent), "the guest did not report on sockets");
        let nothing = qemu::Report { tests: 0, ..good() };
        assert_eq!(verdict(nothing), "no test ran in the guest: does the filter match any?");
        let panicked = qemu::Report { is_complete: false, ..good() };
        assert!(verdict(panicked).starts_with("the guest stopped before"));
        let broken = qemu::Report { error: Some("no bpffs".into()), ..good() };
        assert_eq!(verdict(broken), "the guest could not be set up: no bpffs");
    }

    #[test]
    fn a_run_without_tests_is_refused() {
        assert_eq!(
            run("6.1", &Programs::default(), &[], &[], &mut std::io::sink()).unwrap_err().to_string(),
            "no test to run under kernel 6.1"
        );
    }
}
