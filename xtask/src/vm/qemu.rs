//! Runs a guest and listens to its serial line.

use std::{
    io::{Read as _, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{apt, kernel};

const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";

/// Everything that qemu can emulate but `cmpxchg16b`: before its version 8.0 that instruction leaves garbage in the flags,
/// which an interrupt at the wrong moment makes visible as a double fault. The kernel's allocator uses it when it is
/// there: 4 of 8 guests crashed with it (qemu 7.2, kernel 6.12) and none of 19 without.
const CPU: &str = "max,-cx16";

/// Memory of the guest, in MiB. Its file system is in there too.
const MEMORY: &str = "3072";

/// What the guest reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Name and exit status of each program, in the order in which they ended.
    pub(super) results: Vec<(String, i32)>,
    /// How many tests the test programs said they would run.
    pub(super) tests: u64,
    /// Names of the tests that failed.
    pub(super) failures: Vec<String>,
    /// Tests that said why they did not run.
    pub(super) not_run: Vec<String>,
    /// What kept vm-init from its work.
    pub(super) error: Option<String>,
    /// Whether vm-init came to its end.
    pub(super) is_complete: bool,
}

/// Installs qemu unless it is there.
///
/// # Errors
/// When it cannot be had.
pub(super) fn install() -> Result<()> {
    apt::install("qemu-system-x86", Path::new(PROGRAM), "which runs the guest")
}

/// Starts `kernel` with the given first file system, copies what it prints to `out`, and waits until it powers off. qemu is
/// installed.
///
/// # Errors
/// When qemu fails, or the guest is not done after `limit`; it is stopped then.
pub(super) fn run(
    kernel: &kernel::Files,
    initramfs: &Path,
    limit: Duration,
    out: &mut impl Write,
) -> Result<Report> {
    let mut command = Command::new(PROGRAM);
    command
        // Never KVM: nested virtualisation hangs on some machines, and the tests are few enough without it.
        .args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", MEMORY])
        // The serial line is all there is; `-nographic` would put the firmware's words on it as well.
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"])
        .args(["-monitor", "none", "-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        // Any oops is a panic, and a panic reboots at once, which ends qemu.
        .args(["-append", "console=ttyS0 quiet loglevel=3 oops=panic panic=-1 random.trust_cpu=on"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot run {PROGRAM}"))?;
    listen(Guest(child), limit, out)
}

/// A running qemu. It never outlives this value.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only for a child that was waited for.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn listen(mut guest: Guest, limit: Duration, out: &mut impl Write) -> Result<Report> {
    let deadline = Instant::now() + limit;
    let mut serial = guest.0.stdout.take().context("qemu was started with a pipe")?;
    let (sender, receiver) = mpsc::sync_channel::<Vec<u8>>(16);
    // Ends with the pipe: when qemu ends, or is stopped below.
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = serial.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut lines = Lines::default();
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => {
                let text = lines.take(&bytes);
                out.write_all(&text)
                    .and_then(|()| out.flush())
                    .context("cannot write what the guest prints")?;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                bail!("the guest was not done after {} s; the last line is where it hung", limit.as_secs())
            }
        }
    }
    let status = guest.0.wait().context("cannot wait for qemu")?;
    if !status.success() {
        bail!("qemu ended with {status}");
    }
    // The thread sent all it had and reads no more.
    drop(reader.join());
    Ok(lines.report)
}

/// The serial line, cut into lines.
#[derive(Debug, Default)]
struct Lines {
    report: Report,
    open: Vec<u8>,
}

impl Lines {
    /// Takes a piece as it came and gives it back without the carriage returns that a terminal would want.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != b'\r').collect();
        for byte in &text {
            if *byte == b'\n' {
                let line = String::from_utf8_lossy(&self.open).into_owned();
                self.report.line(&line);
                self.open.clear();
            } else {
                self.open.push(*byte);
            }
        }
        text
    }
}

impl Report {
    /// Understands the lines of vm-init, and those of test programs that matter for the whole run.
    fn line(&mut self, line: &str) {
        if let Some(what) = line.strip_prefix("NOT RUN: ") {
            self.not_run.push(what.to_owned());
        } else if let Some(why) = line.strip_prefix("VM-ERROR ") {
            self.error = Some(why.to_owned());
        }
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["VM-RESULT", name, code] => {
                self.results.extend(code.parse().ok().map(|code| (name.to_owned(), code)));
            }
            ["VM-END", _] => self.is_complete = true,
            ["test", name, "...", "FAILED"] => self.failures.push(name.to_owned()),
            ["running", count, "test" | "tests"] => self.tests += count.parse().unwrap_or(0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pieces: &[&str]) -> Report {
        let mut lines = Lines::default();
        for piece in pieces {
            lines.take(piece.as_bytes());
        }
        lines.report
    }

    #[test]
    fn results_are_read_however_the_line_is_cut() {
        let whole = "running 3 tests\r\ntest a ... ok\r\ntest c::d ... FAILED\r\nNOT RUN: b: needs IPv6\r\nVM-RESULT sockets 101\r\nVM-END 4.2\r\n";
        let want = Report {
            results: vec![("sockets".into(), 101)],
            tests: 3,
            failures: vec!["c::d".into()],
            not_run: vec!["b: needs IPv6".into()],
            error: None,
            is_complete: true,
        };
        for cut in 0..whole.len() {
            let (left, right) = whole.split_at(cut);
            assert_eq!(report(&[left, right]), want, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_printed_has_no_carriage_returns() {
        assert_eq!(Lines::default().take(b"a\r\nb"), b"a\nb");
    }

    #[test]
    fn words_of_a_test_are_not_results() {
        let found = report(&["test VM-RESULT sockets 0\nVM-RESULT sockets\nVM-RESULT a b 0\nrunning fast\n"]);
        assert_eq!(found, Report::default());
    }

    #[test]
    fn an_error_of_init_is_kept() {
        let found = report(&["VM-ERROR cannot mount bpf at /sys/fs/bpf\n"]);
        assert_eq!(found.error.as_deref(), Some("cannot mount bpf at /sys/fs/bpf"));
    }

    #[test]
    fn a_guest_that_never_ends_is_stopped() {
        let mut sleep = Command::new("sleep");
        let child = sleep.arg("1000").stdout(Stdio::piped()).spawn().unwrap();
        let error = listen(Guest(child), Duration::from_millis(50), &mut std::io::sink()).unwrap_err();
        assert!(error.to_string().starts_with("the guest was not done after 0 s"), "{error}");
    }

    #[test]
    fn a_failing_qemu_is_an_error() {
        let child = Command::new("false").stdout(Stdio::piped()).spawn().unwrap();
        let error = listen(Guest(child), Duration::from_secs(10), &mut std::io::sink()).unwrap_err();
        assert!(error.to_string().starts_with("qemu ended with exit status"), "{error}");
    }
}
