//! Network namespaces.
//!
//! A namespace is held by one file descriptor of this process and by nothing else, so the kernel frees it,
//! with the interfaces inside, when this process ends in whatever way. Its name in `/run/netns` is a symbolic
//! link to that descriptor: `ip netns exec NAME` and `nsenter --net=/run/netns/NAME` work, and no mount can
//! be left behind or be pinned by another mount namespace.
//!
//! A namespace belongs to a thread. Code runs in one on a thread of its own ([`Netns::run`]), never in an
//! async task, which may wake on another thread. Children are put into one between fork and exec
//! ([`Place`](crate::Place)).
//!
//! Interfaces are made by `ip -batch` (iproute2), one short process per namespace: the same lines a reader
//! can type, errors that name the line, and one file to copy into a small virtual machine. A netlink crate
//! would bring an async runtime and several times the code for the dozen objects that a topology needs.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::symlink;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{process, thread};

use anyhow::{Context as _, Result, bail};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns, unshare};

use crate::{Place as _, names, wait_for};

/// Where ip(8) looks for names.
const FOLDER: &str = "/run/netns";

/// Interface index of the next veth. The kernel hurries to notice a carrier only where an interface's index
/// differs from its peer's (`linkwatch_urgent_event`); left to itself it numbers both ends alike, as each is
/// the second interface of its namespace, and may take a second.
static NEXT_INDEX: AtomicU32 = AtomicU32::new(1000);

/// Flag of a route to an address of this machine (`linux/ipv6_route.h`).
const RTF_LOCAL: u32 = 0x8000_0000;

/// How long the kernel may take for what it does after a request to ip(8) has been answered.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// A network namespace with `lo` up. Dropping it removes the name and lets go of the namespace, which the
/// kernel frees once no process is left inside.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace with IPv4 and IPv6 usable at once: `lo` is up, duplicate address detection and
    /// router solicitation are off. Needs `CAP_SYS_ADMIN` and iproute2.
    pub fn new(label: &str) -> Result<Self> {
        let name = names::unique(label);
        let file = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (needs root)")?;
            File::open("/proc/thread-self/ns/net").context("cannot open the new network namespace")
        })
        .join()
        .unwrap_or_else(|panic| resume_unwind(panic))?;
        let netns = Self { name, file };

        let link = netns.link();
        fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
        let target = format!("/proc/{}/fd/{}", process::id(), netns.file.as_raw_fd());
        symlink(target, &link).with_context(|| format!("cannot name a namespace {}", link.display()))?;

        netns.run(|| -> Result<()> {
            for family in ["all", "default"] {
                set_sysctl(&format!("net.ipv6.conf.{family}.accept_dad"), "0")?;
                set_sysctl(&format!("net.ipv6.conf.{family}.accept_ra"), "0")?;
                set_sysctl(&format!("net.ipv6.conf.{family}.router_solicitations"), "0")?;
            }
            Ok(())
        })?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The unique name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that can be opened to enter the namespace, valid in every process while this value lives.
    pub fn path(&self) -> PathBuf {
        self.link()
    }

    /// Runs `work` on a new thread inside the namespace and waits for it. A panic in `work` goes on here.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .expect("a held namespace can be entered by the user who made it");
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs lines of `ip(8)` inside the namespace, in one process. `#` begins a comment.
    ///
    /// An IPv6 address that a line `addr add ADDRESS/PREFIX dev DEVICE ..` adds can be reached when this
    /// returns: the kernel takes it at once, and makes its route some milliseconds later.
    ///
    /// The error carries ip's own message and the lines.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .in_netns(self)
            .spawn()
            .context("cannot run ip(8): install the package iproute2")?;
        let mut stdin = child.stdin.take().context("ip(8) was started with a pipe as stdin")?;
        stdin.write_all(lines.as_bytes()).context("cannot write to ip(8)")?;
        drop(stdin);
        let output = child.wait_with_output().context("cannot wait for ip(8)")?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("ip(8) failed in {}: {}\n{}", self.name, message.trim(), numbered(lines));
        }
        self.wait_for_addresses(lines)
    }

    /// Runs a script of `nft(8)` inside the namespace. The error carries nft's own message and the script.
    pub fn nft(&self, script: &str) -> Result<()> {
        let mut command = Command::new("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child =
            command.in_netns(self).spawn().context("cannot run nft(8): install the package nftables")?;
        let mut stdin = child.stdin.take().context("nft(8) was started with a pipe as stdin")?;
        stdin.write_all(script.as_bytes()).context("cannot write to nft(8)")?;
        drop(stdin);
        let output = child.wait_with_output().context("cannot wait for nft(8)")?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("nft(8) failed in {}: {}\n{}", self.name, message.trim(), numbered(script));
        }
        Ok(())
    }

    fn wait_for_addresses(&self, lines: &str) -> Result<()> {
        let added: Vec<(String, &str)> = lines.lines().filter_map(added_ipv6).collect();
        if added.is_empty() {
            return Ok(());
        }
        self.run(|| {
            wait_for("routes of new IPv6 addresses", SETTLE_LIMIT, || {
                let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
                let missing =
                    added.iter().find(|(address, device)| !has_local_route(&routes, address, device));
                missing.map_or(Ok(()), |(address, device)| Err(format!("none for {address} on {device}")))
            })
        })
    }

    /// Sets a sysctl of the namespace, such as `net.ipv4.ip_forward`. Interface names with dots do not work.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| set_sysctl(name, value))
    }

    /// Joins two namespaces by a veth pair, both ends up: `here` in this one, `there` in `other`.
    ///
    /// Interface names have at most 15 bytes.
    pub fn join(&self, here: &str, other: &Self, there: &str) -> Result<()> {
        let index = NEXT_INDEX.fetch_add(2, Ordering::Relaxed);
        let path = other.path();
        self.ip(&format!(
            "link add {here} index {index} type veth peer name {there} index {} netns {}
             link set {here} up",
            index + 1,
            path.display()
        ))?;
        other.ip(&format!("link set {there} up"))?;
        self.wait_for_carrier(here)?;
        other.wait_for_carrier(there)
    }

    /// The kernel notices a bit later that the other end came up; until then it drops what is sent.
    fn wait_for_carrier(&self, device: &str) -> Result<()> {
        self.run(|| {
            wait_for(&format!("{device} of {} to be running", self.name), SETTLE_LIMIT, || {
                let mut devices = getifaddrs().map_err(|errno| errno.to_string())?;
                let running = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
                let is_running = devices.any(|it| it.interface_name == device && it.flags.contains(running));
                if is_running { Ok(()) } else { Err("it has no carrier".to_owned()) }
            })
        })
    }

    fn link(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(self.link()) {
            eprintln!("cannot remove {}: {error}", self.link().display());
        }
    }
}

/// Removes names of dead processes; their namespaces went with them.
pub(crate) fn sweep() {
    for link in names::left_over(Path::new(FOLDER)) {
        // Another test process may sweep at the same time: gone is what we want.
        drop(fs::remove_file(link));
    }
}

fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

/// Address, as `/proc/net/ipv6_route` writes it, and device of a line `addr add ADDRESS/PREFIX dev DEVICE ..`.
fn added_ipv6(line: &str) -> Option<(String, &str)> {
    let mut words = line.split_whitespace();
    if (words.next(), words.next()) != (Some("addr"), Some("add")) {
        return None;
    }
    let address: Ipv6Addr = words.next()?.split('/').next()?.parse().ok()?;
    let device = words.skip_while(|word| *word != "dev").nth(1)?;
    Some((format!("{:032x}", u128::from(address)), device))
}

/// Columns: destination, its prefix length, source, its prefix length, next hop, metric, uses, references,
/// flags, device; numbers in hexadecimal (`net/ipv6/route.c`).
fn has_local_route(routes: &str, address: &str, device: &str) -> bool {
    routes.lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let flags = columns.get(8).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        columns.first() == Some(&address)
            && columns.get(9) == Some(&device)
            && flags.is_some_and(|flags| flags & RTF_LOCAL != 0)
    })
}

fn numbered(lines: &str) -> String {
    let numbered = (1..).zip(lines.lines()).map(|(number, line)| format!("  {number:>2}  {}", line.trim()));
    numbered.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_added_ipv6_address_is_read_from_its_line() {
        let expected = Some(("fd000010000900000000000000000001".to_owned(), "lo"));
        assert_eq!(added_ipv6("  addr add fd00:10:9::1/128 dev lo nodad"), expected);
        assert_eq!(added_ipv6("addr add 10.9.0.1/32 dev lo"), None);
        assert_eq!(added_ipv6("route add fd00:10:9::1/128 dev lo"), None);
    }

    #[test]
    fn only_a_local_route_on_the_device_counts() {
        let zero = "0".repeat(32);
        let line = |flags: &str, device: &str| {
            format!(
                "fd000010000900000000000000000001 80 {zero} 00 {zero} 00000000 00000001 00000000 {flags} {device}"
            )
        };
        let is_local = |line: &str| has_local_route(line, "fd000010000900000000000000000001", "eth0");
        assert!(is_local(&line("80200001", "    eth0")));
        assert!(!is_local(&line("00000001", "    eth0")));
        assert!(!is_local(&line("80200001", "    eth1")));
    }
}
