//! `cargo xtask fuzz`: builds a target of `tests/fuzz` for libFuzzer, runs it, and says what it found.
//!
//! The compiler's own coverage pass and LLVM's libFuzzer are all that is needed, on the pinned toolchain: no sanitizer,
//! because the code behind the targets has no `unsafe`, and so neither nightly nor cargo-fuzz.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use xtask::paths;

use crate::{command, setup};

/// What makes a program tell libFuzzer where it has been and what it compared, as cargo-fuzz 0.13 has it.
const COVERAGE: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];

/// Seconds that one input may take, many thousand times what it does take: an endless loop is found too.
const LONGEST_TIME: u64 = 60;

/// Longer inputs find no more and take longer; seeds that are longer are for the plain test.
const LONGEST_INPUT: usize = 4096;

/// What the verb takes.
#[derive(Args)]
pub(crate) struct Fuzz {
    /// A target: a file of tests/fuzz/fuzz_targets, without its end
    #[arg(default_value = "objects")]
    target: String,
    /// For how long
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// Plays this input once instead
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Arguments of libFuzzer; `cargo xtask fuzz -- -help=1` lists them
    #[arg(last = true)]
    args: Vec<String>,
}

impl Fuzz {
    /// Builds the target and runs it.
    ///
    /// # Errors
    /// When it cannot be built, and when a promise is broken: then the input is printed.
    pub(crate) fn run(&self) -> Result<()> {
        let places = Places::of(&self.target)?;
        // The program runs in the workspace root.
        let replay = self.replay.as_deref().map(std::path::absolute).transpose().context("--replay")?;
        if let Some(file) = &replay {
            ensure!(file.is_file(), "there is no file {}", file.display());
        }
        setup::run()?;
        setup::cplusplus()?;
        let program = build(&self.target)?;
        match replay {
            Some(file) => command::step(command::program(program).arg(file).args(&self.args)),
            None => self.look(&program, &places),
        }
    }

    fn look(&self, program: &Path, places: &Places) -> Result<()> {
        for folder in [&places.found, &places.crashes] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut run = command::program(program);
        run.arg(format!("-max_total_time={}", self.seconds))
            .arg(format!("-max_len={LONGEST_INPUT}"))
            .arg(format!("-timeout={LONGEST_TIME}"))
            .arg(format!("-artifact_prefix={}/", places.crashes.display()))
            .arg("-print_final_stats=1")
            .args(places.dictionary.as_ref().map(|file| format!("-dict={}", file.display())))
            .args(&self.args)
            // New inputs go to the first folder.
            .arg(&places.found)
            .args(&places.seeds);
        let (seen, success) = watch(&mut run)?;
        println!("fuzz {}: {}; what is new is in {}", self.target, seen.summary(), places.found.display());
        let Some(input) = seen.crash else {
            ensure!(success, "the fuzzer failed without an input that does it: what it printed is above");
            return Ok(());
        };
        let bytes = fs::read(&input).with_context(|| format!("cannot read {input}"))?;
        println!("\nthis input does it:\n{}\n", String::from_utf8_lossy(&bytes));
        let kept = places.regressions.display();
        println!("play it again:  cargo xtask fuzz {} --replay {input}", self.target);
        println!("keep it:        mkdir -p {kept} && cp {input} {kept}/");
        bail!("a promise of {} is broken: see the panic above", self.target)
    }
}

/// Where the parts of a target are.
struct Places {
    /// What later runs begin with, beside the seeds.
    found: PathBuf,
    crashes: PathBuf,
    /// Folders of inputs that are checked in.
    seeds: Vec<PathBuf>,
    regressions: PathBuf,
    dictionary: Option<PathBuf>,
}

impl Places {
    fn of(target: &str) -> Result<Self> {
        let sources = paths::workspace_root().join("tests/fuzz");
        let (known, wanted) = (targets(&sources)?, target.to_owned());
        ensure!(known.contains(&wanted), "there is no target {target}, only: {}", known.join(", "));
        let regressions = sources.join("regressions").join(target);
        let seeds = [sources.join("corpus").join(target), regressions.clone()];
        let dictionary = sources.join(format!("{target}.dict"));
        Ok(Self {
            found: target_dir().join("corpus").join(target),
            crashes: target_dir().join("crashes").join(target),
            seeds: seeds.into_iter().filter(|folder| folder.is_dir()).collect(),
            regressions,
            dictionary: dictionary.is_file().then_some(dictionary),
        })
    }
}

/// The names of all targets, sorted.
fn targets(sources: &Path) -> Result<Vec<String>> {
    let folder = sources.join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Everything is built another way than usual, so it has a folder of its own.
fn target_dir() -> PathBuf {
    paths::target_dir().join("fuzz")
}

fn build(target: &str) -> Result<PathBuf> {
    // Named, so that build scripts and macros are built without the coverage pass.
    let host = command::output(command::program("rustc").args(["--print", "host-tuple"]))?;
    let host = host.trim_end();
    command::step(
        command::cargo("build")
            .args(["--release", "--manifest-path", "tests/fuzz/Cargo.toml", "--bin", target])
            .args(["--target", host, "--target-dir"])
            .arg(target_dir())
            .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f")),
    )?;
    Ok(target_dir().join(host).join("release").join(target))
}

/// What libFuzzer has said.
#[derive(Default, PartialEq, Eq, Debug)]
struct Seen {
    /// The last line of its progress.
    progress: String,
    executions: Option<String>,
    per_second: Option<String>,
    /// The file of the input that broke something.
    crash: Option<String>,
}

impl Seen {
    /// Takes in a line; returns whether a person should see it.
    fn take(&mut self, line: &str) -> bool {
        let stat = |name| line.strip_prefix(name).map(|number: &str| number.trim().to_owned());
        if let Some(number) = stat("stat::number_of_executed_units:") {
            self.executions = Some(number);
        } else if let Some(number) = stat("stat::average_exec_per_sec:") {
            self.per_second = Some(number);
        } else if let Some((_, file)) = line.split_once("Test unit written to ") {
            self.crash = Some(file.trim().to_owned());
        } else if line.starts_with('#') && line.contains(" cov: ") {
            line.clone_into(&mut self.progress);
            // An input that was added or became smaller: there are thousands of these.
            return ["pulse", "INITED", "DONE"].iter().any(|word| line.contains(word));
        }
        // Statistics, functions that are new, words that it recommends for a dictionary.
        !["stat::", "\"", "######"].iter().any(|start| line.starts_with(start)) && !line.contains("NEW_FUNC")
    }

    fn summary(&self) -> String {
        let number = |name: &str| {
            let mut words = self.progress.split_ascii_whitespace().skip_while(|word| *word != name).skip(1);
            words.next().unwrap_or("?")
        };
        let known = |number: &Option<String>| number.clone().unwrap_or_else(|| "?".to_owned());
        format!(
            "{} executions, {} per second; coverage {} edges, {} features, {} inputs",
            known(&self.executions),
            known(&self.per_second),
            number("cov:"),
            number("ft:"),
            number("corp:"),
        )
    }
}

/// Runs the fuzzer, shows what it says and keeps what matters; returns whether it succeeded too.
fn watch(run: &mut Command) -> Result<(Seen, bool)> {
    command::say(run);
    let mut child = run.stderr(Stdio::piped()).spawn().context("cannot run the fuzzer")?;
    let mut seen = Seen::default();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.context("cannot read what the fuzzer says")?;
            let line = String::from_utf8_lossy(&line);
            if seen.take(&line) {
                eprintln!("{line}");
            }
        }
    }
    let status = child.wait().context("cannot wait for the fuzzer")?;
    Ok((seen, status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: &str =
        "#2097152\tDONE   cov: 6012 ft: 21034 corp: 1534/1024Kb lim: 4096 exec/s: 3456 rss: 120Mb";

    #[test]
    fn the_end_of_a_run_is_one_line() {
        let mut seen = Seen::default();
        assert!(
            !seen.take("#12\tNEW    cov: 1 ft: 2 corp: 3/4b lim: 4 exec/s: 0 rss: 30Mb L: 1/1 MS: 1 CMP-")
        );
        assert!(seen.take(DONE));
        assert!(!seen.take("stat::number_of_executed_units: 2097152"));
        assert!(!seen.take("stat::average_exec_per_sec:     3456"));
        let want =
            "2097152 executions, 3456 per second; coverage 6012 edges, 21034 features, 1534/1024Kb inputs";
        assert_eq!(seen.summary(), want);
        assert_eq!(seen.crash, None);
    }

    #[test]
    fn the_input_that_broke_something_is_remembered() {
        let mut seen = Seen::default();
        assert!(seen.take("thread '<unnamed>' panicked at tests/src/fuzz/node.rs:1:2:"));
        assert!(seen.take("artifact_prefix='/x/'; Test unit written to /x/crash-da39"));
        assert_eq!(seen.crash.as_deref(), Some("/x/crash-da39"));
        assert!(seen.summary().starts_with("? executions"), "it ended before it counted");
    }

    #[test]
    fn a_target_that_is_not_there_is_named_with_those_that_are() {
        assert!(Places::of("objects").is_ok());
        let error = Places::of("packets").map(drop).unwrap_err().to_string();
        assert!(error.contains("no target packets") && error.contains("objects"), "{error}");
    }
}
