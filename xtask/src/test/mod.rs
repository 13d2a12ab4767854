//! `cargo xtask test`: every test of the repository, and at the end what ran and what did not.

mod beside;
mod lanes;
mod tally;

use std::{
    io::{self, Write as _},
    path::Path,
    process::{Command, ExitStatus},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, builder::PossibleValuesParser};

use self::{
    beside::Lint,
    lanes::{How, locked},
    tally::Tally,
};
use crate::{
    command, control_plane_setup,
    programs::{self, Programs},
    setup, verify, vm,
};

/// The package whose tests need root.
const PRIVILEGED: &str = "lb-tests";
/// Told to lb-tests: the tests against a real API server say `NOT RUN` and pass.
const NO_CLUSTER: &str = "LB_TESTS_NO_CLUSTER";
/// Told to lb-tests: everything was built a moment ago, so whoever edits a source while tests run does no harm.
const BUILT: &str = "LB_TESTS_BUILT";
/// Why a run with arguments leaves out what does not take them.
const FILTERED: &str = "only the tests that were asked for";
/// The test programs of lb-tests that `--kernel` runs when none is named: they need no files and no network.
const GUEST_TESTS: [&str; 3] = ["harness", "sockets", "vlan"];
/// The kernel and the test program of every run: the oldest kernel, which refuses and tells namespaces apart in other ways
/// than the newest.
const OLDEST: (&str, &str) = ("5.10", "sockets");

/// What the verb takes.
#[derive(Args)]
pub(crate) struct Test {
    /// Leaves out the tests against a real API server, which is built with Go unless KUBEBUILDER_ASSETS has it
    #[arg(long)]
    no_cluster: bool,
    /// Leaves out everything that needs root
    #[arg(long)]
    no_root: bool,
    /// Leaves out the socket tests under kernel 5.10 in an emulated machine, which needs Debian or Ubuntu on x86_64
    #[arg(long)]
    no_vm: bool,
    /// Runs tests of lb-tests under Debian's kernels of these versions and nothing else, in an emulated machine
    ///
    /// Kernels and qemu come by apt, once. Needs Debian or Ubuntu on x86_64; root only where a package is missing.
    #[arg(long, value_name = "VERSION", value_delimiter = ',', conflicts_with_all = ["no_cluster", "no_root", "no_vm"])]
    #[arg(value_parser = PossibleValuesParser::new(vm::kernels()))]
    kernel: Vec<String>,
    /// A test program of lb-tests for --kernel, by its file name in tests/tests
    #[arg(long = "test", value_name = "NAME", requires = "kernel", default_values = GUEST_TESTS)]
    programs: Vec<String>,
    /// Runs `cargo xtask lint` too, at the lowest priority, while tests wait
    #[arg(long, conflicts_with = "kernel")]
    lint: bool,
    /// Arguments for `cargo test`: which tests, and after a second `--` how; with --kernel, for the test program
    #[arg(last = true)]
    args: Vec<String>,
}

impl Test {
    /// Sets up, builds, runs everything and fails at the end if anything failed.
    pub(crate) fn run(&self) -> Result<()> {
        if !self.kernel.is_empty() {
            return self.in_guests();
        }
        if !self.lint {
            return self.tested(&mut None);
        }
        let mut lint = None;
        let tested = self.tested(&mut lint);
        // Not begun by then if the build failed.
        let linted = Lint::start(&mut lint).and_then(Lint::finish);
        match (tested, linted) {
            (Err(tests), Err(lint)) => bail!("{tests:#}; {lint:#}"),
            (tests, lint) => tests.and(lint),
        }
    }

    /// Everything but lint, which begins when everything is built.
    fn tested(&self, lint: &mut Option<Lint>) -> Result<()> {
        let privilege = self.privilege()?;
        let has_cluster = privilege != Privilege::None && !self.no_cluster;
        if has_cluster {
            control_plane_setup::prepare("--no-cluster")?;
        }
        setup::run()?;
        let guest = self.guest(privilege);
        if guest.is_ok() {
            // First, so that nobody waits minutes for that error.
            vm::fetch(OLDEST.0).context("no older kernel to test under; --no-vm leaves these tests out")?;
        }
        // One build for all that follows: another choice of packages or targets would be another set of features, and the
        // same dependencies once more.
        let programs = programs::build(&["--bins", "--tests"])?;
        let mut summary = Summary::default();
        if privilege == Privilege::None {
            summary.leave_out("everything in lb-tests", "--no-root");
            summary.leave_out("`cargo xtask verify`", "--no-root");
        } else if !has_cluster {
            summary.leave_out("the tests against a real API server", "--no-cluster");
        }
        if let Err(why) = guest {
            summary.leave_out(&format!("{} under kernel {}", OLDEST.1, OLDEST.0), why);
        }
        if !self.args.is_empty() {
            if has_cluster {
                control_plane_setup::build()?;
            }
            return self.chosen(privilege, summary);
        }
        let summary = Mutex::new(summary);
        thread::scope(|scope| {
            if guest.is_ok() {
                scope.spawn(|| in_guest(&programs, &summary));
            }
            lanes::run(&programs, How { privilege, has_cluster }, &summary, || {
                // Both before lint, which builds other BPF programs in the same place.
                if privilege != Privilege::None {
                    let verified = verify::Verify::built().run();
                    locked(&summary).step("verify", verified);
                }
                let mut documentation = Summary::default();
                let shown = documentation.stage("examples in documentation", doc_tests());
                locked(&summary).add(documentation, shown);
                if self.lint {
                    let started = Lint::start(lint).map(drop);
                    locked(&summary).step("begin of lint", started);
                }
            })
        })?;
        summary.into_inner().unwrap_or_else(PoisonError::into_inner).finish()
    }

    /// The tests that were asked for, as cargo chooses them.
    fn chosen(&self, privilege: Privilege, mut summary: Summary) -> Result<()> {
        match privilege {
            // One command, so that the dependencies are compiled with one set of features.
            Privilege::Root => summary.stage("all packages", self.cargo_test())?,
            Privilege::Sudo => {
                summary.stage("unit tests", self.unprivileged())?;
                summary.stage("tests that need root", self.through_sudo()?)?;
            }
            Privilege::None => summary.stage("unit tests", self.unprivileged())?,
        }
        if privilege != Privilege::None {
            summary.leave_out("`cargo xtask verify`", FILTERED);
        }
        summary.finish()
    }

    /// Whether a guest runs, or why not.
    fn guest(&self, privilege: Privilege) -> Result<(), &'static str> {
        if self.no_vm {
            Err("--no-vm")
        } else if privilege == Privilege::None {
            // Fetching what it needs may ask for root.
            Err("--no-root")
        } else if !self.args.is_empty() {
            Err(FILTERED)
        } else {
            Ok(())
        }
    }

    /// One kernel after the other, whatever the ones before came to.
    fn in_guests(&self) -> Result<()> {
        setup::run()?;
        let mut summary = Summary::default();
        let programs = vm::build(&self.programs)?;
        for kernel in &self.kernel {
            let outcome = vm::run(kernel, &programs, &self.programs, &self.args, &mut io::stdout());
            summary.guest(kernel, outcome);
        }
        summary.finish()
    }

    fn privilege(&self) -> Result<Privilege> {
        if self.no_root {
            return Ok(Privilege::None);
        }
        if command::is_root()? {
            return Ok(Privilege::Root);
        }
        ensure!(
            command::find("sudo").is_some(),
            "the tests attach BPF programs and make network namespaces: run this as root, install sudo, or leave those \
             tests out with --no-root"
        );
        Ok(Privilege::Sudo)
    }

    /// `cargo test` for what this machine can build: the default members.
    fn cargo_test(&self) -> Command {
        let mut command = command::cargo("test");
        command.arg("--no-fail-fast").env(BUILT, "1");
        if self.no_cluster {
            command.env(NO_CLUSTER, "1");
        }
        command.args(&self.args);
        command
    }

    fn unprivileged(&self) -> Command {
        let mut command = command::cargo("test");
        command
            .args(["--no-fail-fast", "--workspace", "--exclude", "lb-ebpf", "--exclude", PRIVILEGED])
            .args(&self.args);
        command
    }

    /// Cargo builds as the user; only the test programs run as root.
    fn through_sudo(&self) -> Result<Command> {
        let sudo = command::as_root(Path::new("env"))?;
        let mut cargo = command::cargo("test");
        cargo.args(["--no-fail-fast", "--package", PRIVILEGED, "--config", &runner(&sudo)?]).env(BUILT, "1");
        if self.no_cluster {
            cargo.env(NO_CLUSTER, "1");
        }
        cargo.args(&self.args);
        Ok(cargo)
    }
}

/// Tests under the oldest kernel: what the guest prints is shown when it ends.
fn in_guest(programs: &Programs, summary: &Mutex<Summary>) {
    let (kernel, program) = OLDEST;
    let mut text = Vec::new();
    let outcome = vm::run(kernel, programs, &[program.to_owned()], &[], &mut text);
    let mut out = io::stdout().lock();
    let shown = writeln!(out, "\n+ {program} under kernel {kernel}").and_then(|()| out.write_all(&text));
    drop(out);
    let mut summary = locked(summary);
    summary.guest(kernel, outcome);
    if let Err(error) = shown {
        summary.step("output of the guest", Err(error.into()));
    }
}

fn doc_tests() -> Command {
    let mut command = command::cargo("test");
    command.args(["--doc", "--no-fail-fast"]);
    command
}

/// Cargo's setting for a program that runs test programs.
fn runner(command: &Command) -> Result<String> {
    let mut words = Vec::new();
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        let word = word.to_str().with_context(|| format!("{} is not UTF-8", word.display()))?;
        // A literal string of TOML has no escapes.
        ensure!(!word.contains('\''), "a path with an apostrophe cannot be handed to cargo: {word}");
        words.push(format!("'{word}'"));
    }
    Ok(format!("target.'cfg(all())'.runner=[{}]", words.join(", ")))
}

/// How the tests that need root are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Privilege {
    Root,
    Sudo,
    None,
}

/// What the whole run comes to.
#[derive(Default)]
struct Summary {
    ran: Vec<String>,
    /// Of the test programs.
    tests: Tally,
    programs: u32,
    not_run: Vec<String>,
    failed: Vec<String>,
}

impl Summary {
    fn leave_out(&mut self, what: &str, why: &str) {
        self.not_run.push(format!("{what}: {why}"));
    }

    /// Runs a `cargo test` and counts what it prints.
    fn stage(&mut self, name: &str, mut command: Command) -> Result<()> {
        command::say(&command);
        let (status, tally) = tally::watch(&mut command)?;
        self.ran.push(format!("{name}: {tally}"));
        if !status.success() && tally.failures.is_empty() {
            self.failed.push(format!("{name}: {status}"));
        }
        self.not_run.extend(tally.not_run);
        self.failed.extend(tally.failures);
        Ok(())
    }

    /// Counts what a test program came to.
    fn program(&mut self, title: &str, status: ExitStatus, tally: Tally) {
        if !status.success() && tally.failures.is_empty() {
            self.failed.push(format!("{title}: {status}"));
        }
        self.failed.extend(tally.failures.iter().map(|test| format!("{title}: {test}")));
        self.programs += 1;
        self.tests.add(tally);
    }

    /// Takes over what one stage came to.
    fn add(&mut self, other: Self, result: Result<()>) {
        self.ran.extend(other.ran);
        self.not_run.extend(other.not_run);
        self.failed.extend(other.failed);
        if let Err(error) = result {
            self.failed.push(format!("{error:#}"));
        }
    }

    /// Counts what tests under another kernel came to.
    fn guest(&mut self, kernel: &str, outcome: Result<vm::Outcome>) {
        match outcome {
            Ok(outcome) => {
                let passed = outcome.tests.saturating_sub(outcome.not_run.len() as u64);
                self.ran.push(format!(
                    "kernel {kernel}: {passed} passed, {} not run, in {} s",
                    outcome.not_run.len(),
                    outcome.took.as_secs()
                ));
                for test in outcome.not_run {
                    self.leave_out(&format!("kernel {kernel}"), &test);
                }
            }
            Err(error) => self.failed.push(format!("kernel {kernel}: {error:#}")),
        }
    }

    fn step(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.ran.push(name.to_owned()),
            Err(error) => self.failed.push(format!("{name}: {error:#}")),
        }
    }

    fn finish(mut self) -> Result<()> {
        println!("\nran");
        if self.programs > 0 {
            println!("  {} test programs: {}", self.programs, self.tests);
        }
        self.tests.not_run.sort();
        self.not_run.append(&mut self.tests.not_run);
        for line in &self.ran {
            println!("  {line}");
        }
        // The cases of a table test bear one name.
        self.not_run.dedup();
        if !self.not_run.is_empty() {
            println!("NOT RUN");
            for line in &self.not_run {
                println!("  {line}");
            }
        }
        if self.failed.is_empty() {
            return Ok(());
        }
        println!("FAILED");
        for line in &self.failed {
            println!("  {line}");
        }
        bail!("{} failed", self.failed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Test {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            test: Test,
        }
        let line = std::iter::once("test").chain(args.iter().copied());
        <Line as clap::Parser>::try_parse_from(line).unwrap().test
    }

    #[test]
    fn a_guest_is_part_of_every_whole_run() {
        assert_eq!(parse(&[]).guest(Privilege::Root), Ok(()));
        assert_eq!(parse(&["--no-cluster"]).guest(Privilege::Sudo), Ok(()));
        assert_eq!(parse(&["--no-vm"]).guest(Privilege::Root), Err("--no-vm"));
        assert_eq!(parse(&["--no-root"]).guest(Privilege::None), Err("--no-root"));
        assert_eq!(parse(&["--", "one"]).guest(Privilege::Root), Err(FILTERED));
    }

    #[test]
    fn the_oldest_kernel_is_one_that_can_be_had() {
        assert_eq!(vm::kernels().next(), Some(OLDEST.0));
        assert!(GUEST_TESTS.contains(&OLDEST.1));
    }

    #[test]
    fn the_runner_is_a_list_so_that_spaces_survive() {
        let mut command = Command::new("sudo");
        command.args(["env", "PATH=/a b:/c"]);
        assert_eq!(runner(&command).unwrap(), "target.'cfg(all())'.runner=['sudo', 'env', 'PATH=/a b:/c']");
    }
}
