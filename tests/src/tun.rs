//! A cable without Ethernet: a TUN device in each of two namespaces, and a thread that carries packets between them.
#![expect(unsafe_code, reason = "a TUN device is made by an ioctl")]

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Netns;

/// Bytes of the largest packet.
const MOST: usize = 1 << 16;
/// How often the thread looks whether it is to end, in milliseconds.
const LOOK_MS: u8 = 100;

/// A cable. Dropping it removes both devices.
#[derive(Debug)]
pub struct Tunnel {
    over: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Joins two namespaces by TUN devices of this name, which are up. Needs `/dev/net/tun`.
    pub fn join(name: &str, namespaces: [&Netns; 2]) -> Result<Self> {
        let mut ends = Vec::new();
        for netns in namespaces {
            ends.push(netns.run(|| device(name)).with_context(|| format!("cannot make {name}"))?);
            netns.ip(&format!("link set {name} up"))?;
        }
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let carrier = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                // Devices that are gone have nobody to carry for.
                if carry(&ends).is_err() {
                    break;
                }
            }
        });
        Ok(Self { over, carrier: Some(carrier) })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            drop(carrier.join());
        }
    }
}

/// A TUN device of the caller's namespace: packets without anything before the IP header.
fn device(name: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long for a device");
    // SAFETY: a structure of numbers, all of which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
    // SAFETY: the request lives for the call, and has a name that ends.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(file)
}

/// Waits for packets at either end, and carries them to the other one.
fn carry(ends: &[File]) -> io::Result<()> {
    let mut polled = ends.iter().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN)).collect::<Vec<_>>();
    poll(&mut polled, PollTimeout::from(LOOK_MS))?;
    let mut packet = vec![0; MOST];
    for (mut from, mut to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
        loop {
            let len = match from.read(&mut packet) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            // What a device does not take is lost, as on a cable.
            drop(to.write(&packet[..len]));
        }
    }
    Ok(())
}
