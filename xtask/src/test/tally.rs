//! Counts what tests print while it goes on to the terminal, or to whoever shows it later.

use std::{
    fmt,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    process::{Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};

use crate::command;

/// What the lines of one `cargo test`, or of one test program, come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Tests that said by themselves that they did nothing, with the reason; once for each case of a table test.
    pub(super) not_run: Vec<String>,
    /// Names of the tests that failed.
    pub(super) failures: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A test that cannot run here returns early, which the harness counts as passed.
        let passed = self.passed.saturating_sub(self.not_run.len() as u64);
        write!(f, "{passed} passed, {} failed, {} ignored", self.failed, self.ignored)?;
        if !self.not_run.is_empty() {
            write!(f, ", {} not run", self.not_run.len())?;
        }
        Ok(())
    }
}

impl Tally {
    fn read(&mut self, line: &str) {
        if let Some(what) = line.strip_prefix("NOT RUN:") {
            self.not_run.push(what.trim().to_owned());
        } else if let Some(result) = line.strip_prefix("test result:") {
            for (word, count) in [
                (" passed", &mut self.passed),
                (" failed", &mut self.failed),
                (" ignored", &mut self.ignored),
            ] {
                *count += number_before(result, word);
            }
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }

    /// Takes over what another one has counted.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.not_run.extend(other.not_run);
        self.failures.extend(other.failures);
    }
}

fn number_before(text: &str, word: &str) -> u64 {
    let Some(end) = text.find(word) else {
        return 0;
    };
    text[..end]
        .rsplit(|c: char| !c.is_ascii_digit())
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

/// Runs a command, passes every line on to our own stdout and stderr, and counts.
///
/// # Errors
/// When it cannot be started or its output cannot be read.
pub(super) fn watch(command: &mut Command) -> Result<(ExitStatus, Tally)> {
    // Cargo sees pipes and would turn its colours off.
    if io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    count(command, io::stdout(), io::stderr())
}

/// Runs a command and counts; its lines come back in one piece.
///
/// # Errors
/// When it cannot be started or its output cannot be read.
pub(super) fn collect(command: &mut Command) -> Result<(ExitStatus, Tally, Vec<u8>)> {
    let text = Mutex::default();
    let (status, tally) = count(command.stdin(Stdio::null()), Shared(&text), Shared(&text))?;
    Ok((status, tally, text.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

/// One text that two readers write lines to.
struct Shared<'a>(&'a Mutex<Vec<u8>>);

impl Write for Shared<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn count(command: &mut Command, out: impl Write, err: impl Write + Send) -> Result<(ExitStatus, Tally)> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot run {}", command::describe(command)))?;
    let stdout = child.stdout.take().context("a test program has no stdout")?;
    let stderr = child.stderr.take().context("a test program has no stderr")?;
    let mut tally = thread::scope(|scope| -> Result<Tally> {
        let errors = scope.spawn(|| pass_on(stderr, err));
        let mut tally = pass_on(stdout, out)?;
        let errors = errors.join().map_err(|_panic| anyhow::anyhow!("the reader of stderr panicked"))?;
        tally.add(errors?);
        Ok(tally)
    })?;
    // The two readers each saw their own order.
    tally.not_run.sort();
    let status = child.wait().context("cannot wait for a test program")?;
    Ok((status, tally))
}

fn pass_on(from: impl Read, mut to: impl Write) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut line = Vec::new();
    let mut from = BufReader::new(from);
    while from.read_until(b'\n', &mut line).context("cannot read what a test program prints")? > 0 {
        to.write_all(&line).context("cannot print what a test program prints")?;
        tally.read(&without_colour(&String::from_utf8_lossy(&line)));
        line.clear();
    }
    Ok(tally)
}

/// A line without its line end and without terminal escapes such as `ESC [ 1 m`.
fn without_colour(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line.trim_end();
    while let Some((before, escape)) = rest.split_once('\x1b') {
        plain.push_str(before);
        rest = escape.split_once('m').map_or("", |(_escape, after)| after);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        pass_on(text.as_bytes(), io::sink()).unwrap()
    }

    #[test]
    fn results_of_several_programs_are_added() {
        let sum = tally(
            "test a::b ... ok\n\
             test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             test c::d ... FAILED\n\
             test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!((sum.passed, sum.failed, sum.ignored), (15, 1, 1));
        assert_eq!(sum.failures, ["c::d"]);
    }

    #[test]
    fn a_test_that_says_not_run_does_not_count_as_passed() {
        let sum =
            tally("NOT RUN: netns::wires: needs root\ntest result: ok. 3 passed; 0 failed; 0 ignored\n");
        assert_eq!(sum.not_run, ["netns::wires: needs root"]);
        assert_eq!(sum.to_string(), "2 passed, 0 failed, 0 ignored, 1 not run");
    }

    #[test]
    fn colours_do_not_hide_a_result() {
        assert_eq!(without_colour("test a ... \x1b[31mFAILED\x1b(B\x1b[m\n"), "test a ... FAILED");
        assert_eq!(tally("test result: \x1b[32mok\x1b[0m. 2 passed; 0 failed\n").passed, 2);
    }

    #[test]
    fn output_that_is_not_text_is_passed_on_as_it_is() {
        let mut copy = Vec::new();
        pass_on(&b"\xff\xfe\nlast line without an end"[..], &mut copy).unwrap();
        assert_eq!(copy, b"\xff\xfe\nlast line without an end");
    }
}
