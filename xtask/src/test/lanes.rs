//! Runs test programs beside each other: most of what they do is wait.
//!
//! What a program prints is shown in one piece when it is done. Programs that need the control plane come as soon as it is built.

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{Privilege, Summary, tally};
use crate::{
    command,
    programs::{Programs, TestProgram},
};

/// Test programs of lb-tests that run for a minute or more, longest first: begun last, they would run alone at the end.
const LONG: [&str; 8] =
    ["many_services", "api_server", "health", "sockets", "twin", "growth", "transfers", "packets"];
/// Those with tests against a real control plane.
const CLUSTER: [&str; 7] =
    ["api_server", "control_plane", "health", "leftovers", "many_services", "takeover", "twin"];
/// How many run at a time. Each runs as many tests at a time as there are processors.
const LANES: usize = 2;

/// How programs are run.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) privilege: Privilege,
    /// Whether there will be a control plane.
    pub(super) has_cluster: bool,
}

/// Test programs that are still to run.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: VecDeque<TestProgram>,
    /// For the control plane.
    waiting: Vec<TestProgram>,
}

impl Queue {
    fn new(programs: &Programs, how: How) -> Self {
        let mut tests: Vec<TestProgram> = programs
            .tests
            .iter()
            .filter(|test| how.privilege != Privilege::None || !is_privileged(test))
            .cloned()
            .collect();
        tests.sort_by_key(|test| (rank(test), title(test)));
        let (waiting, ready): (Vec<_>, Vec<_>) =
            tests.into_iter().partition(|test| how.has_cluster && needs_cluster(test));
        Self { state: Mutex::new(State { ready: ready.into(), waiting }), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A list whose owner panicked is whole: each change is one call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control plane is built, or cannot be: then those that need it are left out.
    fn settle(&self, is_built: bool) {
        let mut state = self.state();
        let waiting = std::mem::take(&mut state.waiting);
        if is_built {
            for test in waiting.into_iter().rev() {
                state.ready.push_front(test);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The next one; nothing when there will be none.
    fn next(&self) -> Option<TestProgram> {
        let mut state = self.state();
        loop {
            if let Some(test) = state.ready.pop_front() {
                return Some(test);
            }
            if state.waiting.is_empty() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Runs all test programs, and the control plane's build before those that need it, while `meanwhile` runs here.
///
/// # Errors
/// When a program cannot be started; `meanwhile` comes to its end all the same.
pub(super) fn run(
    programs: &Programs,
    how: How,
    summary: &Mutex<Summary>,
    meanwhile: impl FnOnce(),
) -> Result<()> {
    let queue = &Queue::new(programs, how);
    thread::scope(|scope| {
        let lanes: Vec<_> =
            (0..LANES).map(|_| scope.spawn(move || lane(queue, how.privilege, summary))).collect();
        if how.has_cluster {
            scope.spawn(move || {
                let built = programs.binary("control-plane").and_then(|program| {
                    command::step(command::program("nice").args(["-n", "5"]).arg(program).arg("build"))
                });
                queue.settle(built.is_ok());
                if let Err(error) = built {
                    let error = error
                        .context("no control plane to test against; --no-cluster leaves these tests out");
                    locked(summary).step("control plane", Err(error));
                }
            });
        }
        meanwhile();
        for lane in lanes {
            lane.join().map_err(|_panic| anyhow::anyhow!("a thread that runs tests panicked"))??;
        }
        Ok(())
    })
}

/// The summary. One whose owner panicked is as whole as before.
pub(super) fn locked(summary: &Mutex<Summary>) -> MutexGuard<'_, Summary> {
    summary.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lane(queue: &Queue, privilege: Privilege, summary: &Mutex<Summary>) -> Result<()> {
    while let Some(test) = queue.next() {
        let mut command = match privilege {
            Privilege::Sudo if is_privileged(&test) => command::as_root(&test.path)?,
            _ => command::program(&test.path),
        };
        // As cargo runs it.
        command.current_dir(&test.folder).env("CARGO_MANIFEST_DIR", &test.folder).env(super::BUILT, "1");
        let began = Instant::now();
        let (status, tally, text) = tally::collect(&mut command)?;
        let title = title(&test);
        let head = format!("\n+ {title}: {} s\n", began.elapsed().as_secs());
        let mut out = io::stdout().lock();
        out.write_all(head.as_bytes())
            .and_then(|()| out.write_all(&text))
            .context("cannot write to stdout")?;
        drop(out);
        locked(summary).program(&title, status, tally);
    }
    Ok(())
}

fn is_privileged(test: &TestProgram) -> bool {
    test.folder.ends_with("tests")
}

fn needs_cluster(test: &TestProgram) -> bool {
    is_privileged(test) && test.is_integration && CLUSTER.contains(&&*test.name)
}

/// Longest first.
fn rank(test: &TestProgram) -> usize {
    let is_here = is_privileged(test) && test.is_integration;
    LONG.iter().position(|long| is_here && *long == test.name).unwrap_or(LONG.len())
}

fn title(test: &TestProgram) -> String {
    let package = test.folder.file_name().unwrap_or_default().display();
    let kind = if test.is_integration { "tests" } else { "unit tests" };
    format!("{package}: {kind} {}", test.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xtask::paths::workspace_root;

    const HOW: How = How { privilege: Privilege::Root, has_cluster: true };

    fn queue(how: How) -> Queue {
        let test = |folder: &str, name: &str, is_integration| TestProgram {
            name: name.into(),
            is_integration,
            path: "/t".into(),
            folder: folder.into(),
        };
        let tests = vec![
            test("/w/tests", "cli", true),
            test("/w/tests", "twin", false),
            test("/w/lb-agent", "heap", true),
            test("/w/tests", "growth", true),
            test("/w/tests", "twin", true),
            test("/w/tests", "api_server", true),
        ];
        Queue::new(&Programs { tests, ..Programs::default() }, how)
    }

    fn rest(queue: &Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.next()).map(|test| title(&test)).collect()
    }

    #[test]
    fn long_ones_come_first_and_those_with_a_control_plane_once_it_is_there() {
        let queue = queue(HOW);
        assert_eq!(queue.next().map(|test| title(&test)).as_deref(), Some("tests: tests growth"));
        queue.settle(true);
        let wanted = [
            "tests: tests api_server",
            "tests: tests twin",
            "lb-agent: tests heap",
            "tests: tests cli",
            "tests: unit tests twin",
        ];
        assert_eq!(rest(&queue), wanted);
    }

    #[test]
    fn without_a_control_plane_the_rest_runs() {
        let queue = queue(HOW);
        queue.settle(false);
        let wanted =
            ["tests: tests growth", "lb-agent: tests heap", "tests: tests cli", "tests: unit tests twin"];
        assert_eq!(rest(&queue), wanted);
    }

    #[test]
    fn whoever_has_asked_for_no_cluster_or_no_root_waits_for_none() {
        assert_eq!(rest(&queue(How { has_cluster: false, ..HOW })).len(), 6);
        let queue = queue(How { privilege: Privilege::None, has_cluster: false });
        assert_eq!(rest(&queue), ["lb-agent: tests heap"]);
    }

    #[test]
    fn what_needs_the_control_plane_waits_for_it() {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(workspace_root().join("tests/tests")).unwrap() {
            let path = entry.unwrap().path();
            let files = if path.is_dir() {
                std::fs::read_dir(&path).unwrap().map(|file| file.unwrap().path()).collect()
            } else {
                vec![path.clone()]
            };
            let asks = |file: &std::path::PathBuf| {
                std::fs::read_to_string(file).is_ok_and(|text| text.contains("needs_cluster!("))
            };
            if files.iter().any(asks) {
                found.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
            }
        }
        found.sort();
        assert_eq!(found, CLUSTER);
    }

    #[test]
    fn every_name_is_that_of_a_test_program() {
        for name in LONG.iter().chain(&CLUSTER) {
            let tests = workspace_root().join("tests/tests");
            let is_there = tests.join(name).is_dir() || tests.join(format!("{name}.rs")).is_file();
            assert!(is_there, "{name}");
        }
    }
}
