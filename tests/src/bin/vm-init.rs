//! The first process of the virtual machine that `cargo xtask test` starts.
//!
//! It mounts what a machine has mounted, then follows the file `/etc/vm-tests`, one instruction a line, with tabs between the words:
//!
//! ```text
//! module <path>                            loads a kernel module
//! env    <name> <value>                    sets a variable for the programs below
//! run    <name> <program> <argument>..     runs a program and prints `VM-RESULT <name> <exit status>`
//! ```
//!
//! At the end it prints `VM-END <seconds since boot>`, or `VM-ERROR <why>` when it cannot go on, and powers off.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{self, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::tcdrain;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

/// What this program does. Written by `cargo xtask test`.
const SCRIPT: &str = "/etc/vm-tests";

/// File system and mount point, in the order of mounting.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
];

/// Kernel messages of this severity and worse are shown after a failure: 4 is a warning.
const WARNING: u32 = 4;

fn main() -> ExitCode {
    if process::id() != 1 || fs::metadata(SCRIPT).is_err() {
        eprintln!("vm-init is the first process of a test machine and does nothing anywhere else");
        return ExitCode::FAILURE;
    }
    match run() {
        Ok(()) => println!("VM-END {}", uptime()),
        Err(error) => println!("VM-ERROR {error:#}"),
    }
    // What is still on its way through the serial line would be lost.
    if let Err(error) = tcdrain(io::stdout()) {
        eprintln!("cannot empty the serial line: {error}");
    }
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        // The kernel panics when its first process ends, and that ends the machine too.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> Result<()> {
    for (kind, place) in MOUNTS {
        // Those below /sys exist once it is mounted.
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {kind} at {place}"))?;
    }
    let text = fs::read_to_string(SCRIPT).with_context(|| format!("cannot read {SCRIPT}"))?;
    let mut environment = Vec::new();
    let mut log = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words[..] {
            ["module", path] => load(path).with_context(|| format!("cannot load {path}"))?,
            ["env", name, value] => environment.push((name, value)),
            ["run", name, program, ref arguments @ ..] => {
                if log.is_none() {
                    finish_setup(&environment)?;
                    log = Some(KernelLog::from_now_on()?);
                }
                let mut command = Command::new(program);
                command.args(arguments).env_clear().envs(environment.iter().copied());
                let code = execute(&mut command).with_context(|| format!("cannot run {program}"))?;
                if let Some(log) = log.as_mut().filter(|_| code != 0) {
                    log.show();
                }
                println!("VM-RESULT {name} {code}");
            }
            _ => bail!("not an instruction: {line}"),
        }
    }
    Ok(())
}

/// What needs the environment's `PATH`.
fn finish_setup(environment: &[(&str, &str)]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["link", "set", "lo", "up"]).env_clear().envs(environment.iter().copied());
    let code = execute(&mut command).context("cannot run ip")?;
    ensure!(code == 0, "cannot bring up the loopback device: ip ended with {code}");
    println!("VM-READY {}", uptime());
    Ok(())
}

fn load(path: &str) -> Result<()> {
    let file = File::open(path)?;
    match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Runs a program to its end and gives its exit status, or 128 and the signal that ended it.
///
/// Meanwhile it collects the children of other processes that ended: a first process has to, and tests that
/// look whether a process is gone rely on it.
fn execute(command: &mut Command) -> Result<i32> {
    let child = command.stdin(Stdio::null()).spawn()?;
    let child = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        match wait()? {
            WaitStatus::Exited(pid, code) if pid == child => return Ok(code),
            WaitStatus::Signaled(pid, signal, _) if pid == child => return Ok(128 + signal as i32),
            _ => {}
        }
    }
}

/// What the kernel says while tests run.
struct KernelLog(File);

impl KernelLog {
    /// Without the remarks that every boot makes.
    fn from_now_on() -> Result<Self> {
        let log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        let mut log = log.context("cannot open /dev/kmsg")?;
        log.seek(SeekFrom::End(0)).context("cannot find the end of /dev/kmsg")?;
        Ok(Self(log))
    }

    /// Prints warnings and errors that were not printed yet: the reason for a failed test may be there.
    fn show(&mut self) {
        // One read gives one record, `severity and facility,number,time,flags;text`; after the last it fails.
        let mut record = [0; 8192];
        while let Ok(length @ 1..) = self.0.read(&mut record) {
            let record = String::from_utf8_lossy(&record[..length]);
            let Some((head, text)) = record.split_once(';') else { continue };
            let severity = head.split(',').next().and_then(|number| number.parse::<u32>().ok());
            if severity.is_some_and(|number| number % 8 <= WARNING) {
                println!("kernel: {}", text.lines().next().unwrap_or_default());
            }
        }
    }
}

/// Seconds since boot, as the kernel prints them.
fn uptime() -> String {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
