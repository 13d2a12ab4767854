//! Network cards that do nothing for the kernel.
#![expect(unsafe_code, reason = "a device's features are set by an ioctl")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};

use crate::Netns;

/// `ETHTOOL_STXCSUM` (include/uapi/linux/ethtool.h)
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The kernel finishes the checksums of what leaves by a device. Between devices of one machine it leaves them to a card that never comes.
pub fn finish_checksums(netns: &Netns, device: &str) -> Result<()> {
    netns.run(|| {
        let socket = UdpSocket::bind(("127.0.0.1", 0))?;
        let mut value = Value { command: SET_TX_CHECKSUM, data: 0 };
        // SAFETY: a structure of numbers and pointers, all of which may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the request and what it points to live for the call, and the name ends.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if done != 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot set features of {device}"));
        }
        Ok(())
    })
}
