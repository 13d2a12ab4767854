//! The demo plays to its end, README says what it does, and nothing is left behind however it ends.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use lb_tests::{Process, binary, cgroup, needs, needs_root, wait_for};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use rstest::rstest;

/// Long enough for a slow machine; reached only by failures.
const LIMIT: Duration = Duration::from_mins(2);

/// Starts the demo as a shell does: in a process group of its own.
fn start() -> Process {
    let mut command = Command::new(binary("demo").unwrap());
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::null());
    Process::start("demo", &mut command).unwrap()
}

/// Ids of the processes that `parent` has started and that still run.
fn children(parent: u32) -> Vec<u32> {
    let of_parent = |path: &Path| {
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        line.is_some_and(|id| id.trim() == parent.to_string())
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let ids = processes.filter(|path| of_parent(path));
    ids.filter_map(|path| path.file_name().unwrap().to_str().unwrap().parse().ok()).collect()
}

/// What the process `owner` has made: names of namespaces, cgroups, folders and mounts.
fn made_by(owner: u32) -> Vec<PathBuf> {
    let prefix = format!("lbt-{owner}-");
    let is_its =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    let folders = [PathBuf::from("/run/netns"), cgroup::mount().unwrap(), env::temp_dir()];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    let mut made: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| is_its(path)).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    made.extend(mounts.split_whitespace().map(PathBuf::from).filter(|path| is_its(path)));
    made
}

/// The only child of the demo, which makes everything.
fn player(demo: &Process) -> u32 {
    wait_for("the demo to begin", LIMIT, || match children(demo.id())[..] {
        [player] if !made_by(player).is_empty() => Ok(player),
        ref others => Err(format!("{others:?}")),
    })
    .unwrap()
}

/// A line with `bpftool`, without the folder of the map, if there is one.
fn command(line: &str) -> Option<String> {
    let words = line.trim().strip_prefix("bpftool ")?.split_whitespace();
    Some(words.map(|word| word.rsplit('/').next().unwrap()).collect::<Vec<_>>().join(" "))
}

#[test]
fn the_demo_ends_well_leaves_nothing_and_asks_bpftool_what_readme_asks() {
    needs_root!();
    needs!(Command::new("bpftool").arg("version").output().is_ok(), "bpftool");
    let mut demo = start();
    let player = player(&demo);
    let mut said = String::new();
    demo.child().stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let status = demo.wait(LIMIT).unwrap();
    assert!(status.success(), "{status}:\n{said}");
    assert!(!said.contains("[FAIL]") && said.contains(" steps as expected"), "{said}");
    assert_eq!(made_by(player), [] as [PathBuf; 0]);

    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let typed: Vec<String> = readme.lines().filter_map(command).collect();
    assert_eq!(typed.len(), 3, "{typed:?}");
    assert_eq!(typed, said.lines().filter_map(command).collect::<Vec<_>>());
}

/// How the demo is ended before its time.
#[derive(Clone, Copy, Debug)]
enum By {
    /// Ctrl-C, which goes to the whole process group.
    CtrlC,
    /// `kill`.
    Term,
    /// What plays dies in the middle.
    Crash,
}

#[rstest]
#[case::ctrl_c_at_once(By::CtrlC, 0)]
#[case::ctrl_c_later(By::CtrlC, 2)]
#[case::sigterm(By::Term, 3)]
#[case::a_crash(By::Crash, 2)]
fn a_demo_that_is_ended_early_leaves_nothing(#[case] by: By, #[case] steps: usize) {
    needs_root!();
    let mut demo = start();
    let player = player(&demo);
    let said = BufReader::new(demo.child().stdout.take().unwrap());
    let passed = said.lines().map_while(Result::ok).filter(|line| line.starts_with("[ok]")).take(steps);
    assert_eq!(passed.count(), steps);
    let [demo_id, player_id] = [demo.id(), player].map(|id| Pid::from_raw(id.try_into().unwrap()));
    match by {
        By::CtrlC => killpg(demo_id, Signal::SIGINT),
        By::Term => kill(demo_id, Signal::SIGTERM),
        By::Crash => kill(player_id, Signal::SIGKILL),
    }
    .unwrap();
    assert!(!demo.wait(LIMIT).unwrap().success());
    assert_eq!(children(player), [] as [u32; 0]);
    assert_eq!(made_by(player), [] as [PathBuf; 0]);
}
