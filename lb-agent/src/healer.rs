//! Starts `lb-agent heal-sockets` when refused UDP sockets may have become connectable, or backends of UDP sockets are gone.
//!
//! A process of its own: it enters the namespaces of pods, which this one never does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

/// This program, also after its file was replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// A process that is not done by then waits for something that may never come.
const LIMIT: Duration = Duration::from_mins(1);
/// Between the starts of two runs: what is asked for meanwhile is one run.
const INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a run that something stood in the way of; it doubles with each one.
const FIRST_AGAIN: Duration = Duration::from_secs(1);
/// The longest of these pauses: a capability that is missing may never come.
const LAST_AGAIN: Duration = Duration::from_mins(5);

/// What a run of `lb-agent heal-sockets` has done.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Healed {
    /// Namespaces that were found.
    pub namespaces: usize,
    /// Sockets that a Service without endpoints has refused, or whose Service had endpoints on other nodes only.
    pub refused: usize,
    /// Sockets whose backend is gone.
    #[serde(default)]
    pub stale: usize,
    /// Sockets of which nobody here can say whether they were ours: the processes that have them are not seen.
    #[serde(default)]
    pub unseen: usize,
    /// Those of all of them that are free now.
    pub freed: usize,
    /// Why sockets may have been left as they are, and in which namespaces.
    pub failures: BTreeMap<String, Vec<String>>,
}

impl Healed {
    /// Everything that stood in the way, without the namespaces, which come and go.
    pub fn problem(&self) -> Option<String> {
        let causes: Vec<&str> = self.failures.keys().map(String::as_str).collect();
        (!causes.is_empty()).then(|| causes.join("; "))
    }
}

/// Asks for healing; what is asked for while a run has not begun is one run.
#[derive(Debug)]
pub struct Healer {
    asked: SyncSender<()>,
    wanted: Arc<Mutex<Wanted>>,
}

/// What the next run is to look for besides refused sockets.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Wanted {
    /// Sockets of backends that were at these addresses.
    Some(Suspects),
    /// Sockets of any backend that its frontend has no more.
    Everything,
}

/// Addresses of backends that sockets may have to be freed from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Suspects {
    /// The endpoint is gone.
    pub gone: BTreeSet<SocketAddr>,
    /// The Service port is gone, or has lost its frontends; the endpoint serves.
    pub left: BTreeSet<SocketAddr>,
}

/// More addresses than this are not named one by one: a command line has an end.
const MOST_NAMED: usize = 1000;

impl Wanted {
    const NOTHING: Self = Self::Some(Suspects { gone: BTreeSet::new(), left: BTreeSet::new() });

    fn add(&mut self, suspects: Suspects) {
        if let Self::Some(known) = self {
            known.gone.extend(suspects.gone);
            known.left.extend(suspects.left);
            if known.gone.len() + known.left.len() > MOST_NAMED {
                *self = Self::Everything;
            }
        }
    }

    /// What a run could not do is looked for by the next one, together with what was asked for meanwhile.
    fn merge(&mut self, undone: Self) {
        match undone {
            Self::Some(suspects) => self.add(suspects),
            Self::Everything => *self = Self::Everything,
        }
    }

    /// Arguments of the command.
    fn arguments(&self) -> Vec<String> {
        let Self::Some(Suspects { gone, left }) = self else { return Vec::new() };
        if gone.is_empty() && left.is_empty() {
            // An address that no backend has: only refused sockets are looked for.
            return vec!["--gone".to_owned(), "0.0.0.0:0".to_owned()];
        }
        let mut arguments = Vec::new();
        for (name, addresses) in [("--gone", gone), ("--left", left)] {
            if !addresses.is_empty() {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                arguments.extend([name.to_owned(), addresses.join(",")]);
            }
        }
        arguments
    }
}

impl Healer {
    /// Starts the thread that waits for the processes.
    ///
    /// `healed` is told after each run how many sockets were freed, whether something stood in the way, and how long it took (CT-7).
    ///
    /// # Errors
    /// Those of the thread's creation.
    pub fn start(
        pin_dir: PathBuf,
        healed: impl Fn(usize, bool, Duration) + Send + 'static,
    ) -> io::Result<Self> {
        let heal = move |wanted: &Wanted| {
            let mut command = Command::new(OWN_PROGRAM);
            command
                .args(["heal-sockets", "--output", "json", "--pin-dir"])
                .arg(&pin_dir)
                .args(wanted.arguments());
            output_within(&mut command, LIMIT)
        };
        Self::with(heal, healed)
    }

    /// Asks for healing once the maps are programmed and the programs attached: an agent that stopped between a write and
    /// the healing after it has left sockets refused, and the next one finds nothing to write.
    pub fn heal_after_start(&self) {
        *self.wanted() = Wanted::Everything;
        self.heal(Suspects::default());
    }

    fn with(
        heal: impl FnMut(&Wanted) -> io::Result<Output> + Send + 'static,
        healed: impl Fn(usize, bool, Duration) + Send + 'static,
    ) -> io::Result<Self> {
        let (asked, requests) = sync_channel(1);
        let wanted = Arc::new(Mutex::new(Wanted::NOTHING));
        let known = Arc::clone(&wanted);
        thread::Builder::new()
            .name("healer".into())
            .spawn(move || serve(&requests, &known, (heal, healed)))?;
        Ok(Self { asked, wanted })
    }

    /// Lets sockets be freed that were refused and whose Service has endpoints by now, and those of `suspects`.
    pub fn heal(&self, suspects: Suspects) {
        self.wanted().add(suspects);
        // A request that waits already begins after this moment, and sees what it should.
        let _already_asked = self.asked.try_send(());
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        // Whole at every moment.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(
    requests: &Receiver<()>,
    wanted: &Mutex<Wanted>,
    (mut heal, healed): (impl FnMut(&Wanted) -> io::Result<Output>, impl Fn(usize, bool, Duration)),
) {
    let lock = || wanted.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut told, mut turns) = (Told::default(), Turns::default());
    while wait(requests, &turns) {
        thread::sleep(turns.rest(Instant::now()));
        // What was asked for meanwhile is in this run.
        let _merged = requests.try_recv();
        let now = mem::replace(&mut *lock(), Wanted::NOTHING);
        let began = Instant::now();
        turns.began(began);
        let result = heal(&now);
        let took = began.elapsed();
        if let Ok(output) = &result {
            debug!(result = %one_line(&output.stdout), "looked for UDP sockets that lead nowhere");
        }
        let problem = problem(&result);
        healed(freed(&result), problem.is_some(), took);
        turns.ended(Instant::now(), problem.is_some());
        if problem.is_some() {
            lock().merge(now);
        }
        if let Some(reason) = told.news(problem) {
            warn!(%reason, "connected UDP sockets that lead nowhere may stay so until they connect anew");
        }
    }
}

/// Waits until something is asked for, or is due again. False for the end.
fn wait(requests: &Receiver<()>, turns: &Turns) -> bool {
    match turns.again(Instant::now()) {
        None => requests.recv().is_ok(),
        Some(pause) => requests.recv_timeout(pause) != Err(RecvTimeoutError::Disconnected),
    }
}

/// When the next run is due. Pure.
#[derive(Debug, Default)]
struct Turns {
    /// Start of the last run.
    began: Option<Instant>,
    /// After a run that something stood in the way of: the pause, and its end.
    again: Option<(Duration, Instant)>,
}

impl Turns {
    fn began(&mut self, now: Instant) {
        self.began = Some(now);
    }

    fn ended(&mut self, now: Instant, has_problem: bool) {
        let pause = self.again.map_or(FIRST_AGAIN, |(pause, _)| (pause * 2).min(LAST_AGAIN));
        self.again = has_problem.then(|| (pause, now + pause));
    }

    /// How long a run that was asked for waits: not at all after quiet.
    fn rest(&self, now: Instant) -> Duration {
        self.began.map_or(Duration::ZERO, |began| (began + INTERVAL).saturating_duration_since(now))
    }

    /// When a run is due that nobody asks for.
    fn again(&self, now: Instant) -> Option<Duration> {
        self.again.map(|(_, end)| end.saturating_duration_since(now))
    }
}

/// How many sockets a run has freed.
fn freed(result: &io::Result<Output>) -> usize {
    let healed =
        result.as_ref().ok().and_then(|output| serde_json::from_slice::<Healed>(&output.stdout).ok());
    healed.map_or(0, |healed| healed.freed)
}

/// What kept a run from doing what it is for.
fn problem(result: &io::Result<Output>) -> Option<String> {
    let output = match result {
        Ok(output) => output,
        Err(error) => return Some(format!("cannot run `lb-agent heal-sockets`: {error}")),
    };
    let healed = serde_json::from_slice::<Healed>(&output.stdout);
    if let Some(problem) = healed.ok().and_then(|healed| healed.problem()) {
        return Some(problem);
    }
    let failed = || {
        let Output { status, stderr, .. } = output;
        format!("`lb-agent heal-sockets` ended with {status}: {}", one_line(stderr))
    };
    (!output.status.success()).then(failed)
}

/// The problem that was told last: it is told once, and again when it is another one or has come back.
#[derive(Default)]
struct Told(Option<String>);

impl Told {
    fn news(&mut self, now: Option<String>) -> Option<&str> {
        if self.0 == now {
            return None;
        }
        self.0 = now;
        self.0.as_deref()
    }
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// Those of starting it; `TimedOut` if it ran longer than `limit`, and was killed.
pub(crate) fn output_within(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (child, process) = with_handle(child)?;
    let (done, ended) = sync_channel(1);
    // A thread of its own, because even a killed process may take its time. It is also who takes the status then.
    let waits = thread::Builder::new().name("healer-wait".into()).spawn(move || {
        // Nobody listens after the limit.
        let _too_late = done.send(child.wait_with_output());
    });
    if waits.is_ok()
        && let Ok(output) = ended.recv_timeout(limit)
    {
        return output;
    }
    // By its handle, which is never another process's.
    pidfd_send_signal(&process, Signal::KILL)?;
    waits?;
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("it has not ended within {limit:?} and was killed")))
}

/// A child and a handle of it, which another thread can use.
fn with_handle(mut child: Child) -> io::Result<(Child, OwnedFd)> {
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(handle) => Ok((child, handle)),
        Err(errno) => {
            child.kill()?;
            child.wait()?;
            Err(errno.into())
        }
    }
}

fn one_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus, sync::mpsc::channel};

    use super::*;

    fn gone(addresses: impl IntoIterator<Item = SocketAddr>) -> Suspects {
        Suspects { gone: addresses.into_iter().collect(), left: BTreeSet::new() }
    }

    #[test]
    fn requests_during_a_run_are_one_more_run_and_none_is_lost() {
        let (began, begins) = channel();
        let (end, ends) = channel::<()>();
        let healer = Healer::with(
            move |_| {
                began.send(()).unwrap();
                ends.recv().unwrap();
                Ok(Output { status: ExitStatus::from_raw(0), stdout: vec![], stderr: vec![] })
            },
            |_, _, _| {},
        )
        .unwrap();
        healer.heal(Suspects::default());
        begins.recv().unwrap();
        for _ in 0..5 {
            healer.heal(Suspects::default());
        }
        end.send(()).unwrap();
        begins.recv().unwrap();
        drop(healer);
        end.send(()).unwrap();
        assert!(begins.recv().is_err(), "two runs");
    }

    /// CT-4: what is asked for while a run is under way belongs to the next one.
    #[test]
    fn every_address_is_looked_for_once() {
        let (seen, runs) = channel();
        let (end, ends) = channel::<()>();
        let (counted, counts) = channel();
        let healer = Healer::with(
            move |wanted| {
                seen.send(wanted.arguments()).unwrap();
                ends.recv().unwrap();
                let stdout = serde_json::to_vec(&Healed { freed: 2, ..Healed::default() }).unwrap();
                Ok(Output { status: ExitStatus::from_raw(0), stdout, stderr: vec![] })
            },
            move |freed, has_failed, _| counted.send((freed, has_failed)).unwrap(),
        )
        .unwrap();
        let at = |last: u16| SocketAddr::from(([10, 1, 0, 1], last));
        healer.heal(gone([at(1)]));
        assert_eq!(runs.recv().unwrap(), ["--gone", "10.1.0.1:1"]);
        healer.heal(gone([at(3), at(2)]));
        healer.heal(gone([at(2)]));
        healer.heal(Suspects { left: [at(4)].into(), ..Suspects::default() });
        end.send(()).unwrap();
        let asked = ["--gone", "10.1.0.1:2,10.1.0.1:3", "--left", "10.1.0.1:4"];
        assert_eq!(runs.recv().unwrap(), asked);
        healer.heal(Suspects::default());
        end.send(()).unwrap();
        assert_eq!(runs.recv().unwrap(), ["--gone", "0.0.0.0:0"], "refused ones only");
        healer.heal(gone((0..=u16::try_from(MOST_NAMED).unwrap()).map(at)));
        end.send(()).unwrap();
        assert_eq!(runs.recv().unwrap(), [""; 0], "all");
        end.send(()).unwrap();
        let counted: Vec<_> = counts.iter().take(4).collect();
        assert_eq!(counted, [(2, false); 4], "and what each run frees is counted (CT-7)");
    }

    /// CT-4, CT-7: nobody would ask for an address again.
    #[test]
    fn what_a_run_could_not_do_is_looked_for_again_without_being_asked_for() {
        let (seen, runs) = channel();
        let mut results =
            [Err(io::ErrorKind::TimedOut.into()), Ok(output(1, "", "x")), Ok(output(0, "", ""))].into_iter();
        let healer = Healer::with(
            move |wanted| {
                seen.send((wanted.arguments(), Instant::now())).unwrap();
                results.next().unwrap()
            },
            |_, _, _| {},
        )
        .unwrap();
        let at = |last: u16| SocketAddr::from(([10, 1, 0, 1], last));
        healer.heal(gone([at(1)]));
        let (first, began) = runs.recv().unwrap();
        assert_eq!(first, ["--gone", "10.1.0.1:1"]);
        let (again, next) = runs.recv().unwrap();
        assert_eq!(again, first);
        assert!(next.duration_since(began) >= INTERVAL, "no busy loop");
        // Something new does not wait for the end of the pause, and takes what is undone with it.
        healer.heal(gone([at(2)]));
        assert_eq!(runs.recv().unwrap().0, ["--gone", "10.1.0.1:1,10.1.0.1:2"]);
        drop(healer);
        assert!(runs.recv().is_err(), "all is done");
    }

    #[test]
    fn a_first_run_waits_for_nothing_and_pauses_after_failures_grow() {
        let (begin, mut turns) = (Instant::now(), Turns::default());
        let at = |millis| begin + Duration::from_millis(millis);
        assert_eq!((turns.rest(begin), turns.again(begin)), (Duration::ZERO, None));
        turns.began(at(0));
        assert_eq!(turns.rest(at(300)), Duration::from_millis(700));
        assert_eq!(turns.rest(at(1000)), Duration::ZERO);
        let pauses: Vec<u64> = (0..11)
            .map(|_| {
                turns.ended(begin, true);
                turns.again(begin).unwrap().as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(turns.again(at(400_000)), Some(Duration::ZERO));
        turns.ended(begin, false);
        assert_eq!(turns.again(begin), None, "nothing is left to do");
        turns.ended(begin, true);
        assert_eq!(turns.again(begin), Some(FIRST_AGAIN));
    }

    #[test]
    fn what_is_undone_joins_what_is_asked_for() {
        let gone = |ports: &[u16]| {
            Wanted::Some(gone(ports.iter().map(|port| SocketAddr::from(([10, 1, 0, 1], *port)))))
        };
        for (asked, undone, both) in [
            (gone(&[1]), gone(&[2]), gone(&[1, 2])),
            (gone(&[1]), Wanted::Everything, Wanted::Everything),
            (Wanted::Everything, gone(&[1]), Wanted::Everything),
        ] {
            let mut merged = asked;
            merged.merge(undone);
            assert_eq!(merged, both);
        }
    }

    fn output(status: i32, stdout: &str, stderr: &str) -> Output {
        let status = ExitStatus::from_raw(status << 8);
        Output { status, stdout: stdout.into(), stderr: stderr.into() }
    }

    /// CT-7: failures are told and end nothing.
    #[test]
    fn a_run_that_could_not_do_all_is_a_problem_whatever_its_status() {
        let partial = Healed {
            failures: BTreeMap::from([
                ("a; it needs X".to_owned(), vec!["/proc/1/ns/net".to_owned()]),
                ("b".to_owned(), vec!["/proc/2/ns/net".to_owned(), "/proc/3/ns/net".to_owned()]),
            ]),
            ..Healed::default()
        };
        let json = serde_json::to_string_pretty(&partial).unwrap();
        for status in [0, 1] {
            assert_eq!(problem(&Ok(output(status, &json, "x"))).as_deref(), Some("a; it needs X; b"));
        }
        let good = serde_json::to_string(&Healed::default()).unwrap();
        assert_eq!(problem(&Ok(output(0, &good, ""))), None);
        let said = problem(&Ok(output(1, "", "no maps\n are pinned"))).unwrap();
        assert!(said.contains("exit status: 1: no maps are pinned"), "{said}");
        let said = problem(&Err(io::ErrorKind::TimedOut.into())).unwrap();
        assert!(said.starts_with("cannot run `lb-agent heal-sockets`: "), "{said}");
    }

    #[test]
    fn a_problem_is_told_once_until_it_changes() {
        let mut told = Told::default();
        let some = |text: &str| Some(text.to_owned());
        let rounds = [None, some("a"), some("a"), some("b"), None, some("b")];
        let said: Vec<Option<String>> =
            rounds.into_iter().map(|now| told.news(now).map(str::to_owned)).collect();
        assert_eq!(said, [None, some("a"), None, some("b"), None, some("b")]);
    }

    /// So long that nobody waits for it.
    const FOR_EVER: &str = "600";

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_command_prints_is_returned_however_much_it_is() {
        // More than a pipe holds.
        let script = "head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2; exit 3";
        let output = output_within(&mut shell(script), LIMIT).unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (300_000, 200_000));
        assert_eq!(output.status.code(), Some(3));
        assert!(output_within(&mut Command::new("/nonexistent"), LIMIT).is_err());
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep {FOR_EVER}", file.display());
        let begin = Instant::now();
        // It must have begun by the limit.
        let error = output_within(&mut shell(&script), Duration::from_secs(2)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
        let number: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let deadline = Instant::now() + LIMIT;
        // Gone altogether, also from the table of processes.
        while rustix::process::test_kill_process(Pid::from_raw(number).unwrap()).is_ok() {
            assert!(Instant::now() < deadline, "process {number} still runs");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// CT-7.
    #[test]
    fn how_long_each_run_took_is_told() {
        let (told, times) = channel();
        let pause = Duration::from_millis(30);
        let heal = move |_: &Wanted| {
            thread::sleep(pause);
            Ok(output(0, "", ""))
        };
        let healer = Healer::with(heal, move |_, _, took| told.send(took).unwrap()).unwrap();
        healer.heal_after_start();
        let took: Duration = times.recv().unwrap();
        assert!(took >= pause && took < LIMIT, "{took:?}");
    }

    #[test]
    fn healing_goes_on_after_a_run_that_hung() {
        let (ended, ends) = channel();
        let mut scripts = [format!("exec sleep {FOR_EVER}"), "true".to_owned()].into_iter();
        let healer = Healer::with(
            move |_| {
                let output = output_within(&mut shell(&scripts.next().unwrap()), Duration::from_secs(2));
                ended
                    .send(output.as_ref().map_err(io::Error::kind).map(|output| output.status.success()))
                    .unwrap();
                output
            },
            |_, _, _| {},
        )
        .unwrap();
        healer.heal_after_start();
        assert_eq!(ends.recv().unwrap(), Err(io::ErrorKind::TimedOut));
        healer.heal(Suspects::default());
        assert_eq!(ends.recv().unwrap(), Ok(true));
    }
}
