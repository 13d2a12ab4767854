//! A program in the way: attached as tools did before there were links, tolerating no other.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper for BPF_PROG_ATTACH")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::Ebpf;
use aya::programs::CgroupSockAddr;

/// `BPF_PROG_ATTACH` and the place of connect4 (include/uapi/linux/bpf.h).
const PROG_ATTACH: libc::c_long = 8;
const CGROUP_INET4_CONNECT: u32 = 10;

/// Attaches a connect4 program to `cgroup` without `BPF_F_ALLOW_MULTI`. It stays until the cgroup is removed.
pub(crate) fn attach(cgroup: &Path) {
    let mut object = Ebpf::load(lb_agent::datapath::OBJECT).unwrap();
    let program: &mut CgroupSockAddr = object.program_mut("lb_connect4").unwrap().try_into().unwrap();
    program.load().unwrap();
    let folder = File::open(cgroup).unwrap();
    let program = program.fd().unwrap().as_fd().as_raw_fd();
    // target_fd, attach_bpf_fd, attach_type, attach_flags
    let attr = [
        u32::try_from(folder.as_raw_fd()).unwrap(),
        u32::try_from(program).unwrap(),
        CGROUP_INET4_CONNECT,
        0,
    ];
    // SAFETY: the kernel reads at most the given number of bytes, all of which are in `attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, attr.as_ptr(), size_of_val(&attr)) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
