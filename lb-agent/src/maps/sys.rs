//! System calls that no library offers: atomic link updates, link details, map creation for grace periods, namespace
//! cookies, socket storage.
#![expect(unsafe_code, reason = "bpf(2) and getsockopt(2) take raw pointers; each call is explained")]

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use lb_common::abi::{join32, split32};

/// `BPF_MAP_CREATE` and others (include/uapi/linux/bpf.h).
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const LINK_UPDATE: libc::c_long = 29;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h), kernel 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// bpf(2) with an attribute of 8-byte fields, as the commands below use it.
fn bpf<const N: usize>(command: libc::c_long, attr: &mut [u64; N]) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is N * 8 valid bytes for the whole call, and the kernel reads and writes at most that many. Callers
    // put only pointers into it that are valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<[u64; N]>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(clippy::cast_sign_loss, reason = "open descriptors are not negative")]
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// Opens a pinned object: map, program or link.
///
/// # Errors
/// `ENOENT` if there is no pin; `EINVAL` if the path is not on a bpffs.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    owned(bpf(OBJ_GET, &mut [path.as_ptr() as u64, 0])?)
}

/// Replaces the program of a link atomically: every event runs the old one or the new one.
///
/// # Errors
/// `EINVAL` if the types differ, `ENOLINK` if the link is detached.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_UPDATE, &mut [join32(number(link), number(program)), 0]).map(drop)
}

/// `BPF_LINK_TYPE_CGROUP` (include/uapi/linux/bpf.h).
pub const LINK_TYPE_CGROUP: u32 = 3;

/// `BPF_LINK_TYPE_XDP`
pub const LINK_TYPE_XDP: u32 = 6;

/// `BPF_LINK_TYPE_TCX`
pub const LINK_TYPE_TCX: u32 = 11;

/// `BPF_TCX_INGRESS`
pub const TCX_INGRESS: u32 = 46;

/// `BPF_TCX_EGRESS`
pub const TCX_EGRESS: u32 = 47;

/// What a link says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    /// `BPF_LINK_TYPE_*`, see [`LINK_TYPE_CGROUP`].
    pub kind: u32,
    /// Id of the program that it runs.
    pub program: u32,
    /// For a cgroup link: id of the cgroup (its inode number), 0 if the cgroup is gone.
    pub cgroup: u64,
    /// For a cgroup link: `BPF_CGROUP_*`.
    pub attach_type: u32,
}

impl LinkInfo {
    /// For a link to a device: its interface index, 0 if the device is gone. The field lies where a cgroup's id does.
    pub const fn ifindex(&self) -> u32 {
        split32(self.cgroup).0
    }
}

/// Reads [`LinkInfo`].
///
/// # Errors
/// `EINVAL` if the descriptor is not a BPF object.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // struct bpf_link_info: type, id, prog_id, padding, then for cgroups: cgroup_id u64, attach_type u32.
    let mut info = [0_u64; 8];
    let length = u32::try_from(size_of::<[u64; 8]>()).map_err(io::Error::other)?;
    bpf(OBJ_GET_INFO_BY_FD, &mut [join32(number(link), length), info.as_mut_ptr() as u64])?;
    let ((kind, _), (program, _), (attach_type, _)) = (split32(info[0]), split32(info[1]), split32(info[3]));
    Ok(LinkInfo { kind, program, cgroup: info[2], attach_type })
}

/// Ids of the programs attached to a cgroup at `attach_type` (`BPF_CGROUP_*`), without those of cgroups above.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`.
pub fn cgroup_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    // 64 is BPF_CGROUP_MAX_PROGS.
    let mut ids = [0_u32; 64];
    // target_fd, attach_type; query_flags, attach_flags; prog_ids; prog_cnt
    let mut attr = [join32(number(cgroup), attach_type), 0, ids.as_mut_ptr() as u64, join32(64, 0)];
    bpf(PROG_QUERY, &mut attr)?;
    Ok(ids.into_iter().filter(|id| *id != 0).collect())
}

/// Ids of the programs at a hook of a device, in the order in which they run: `attach_type` is [`TCX_INGRESS`] or [`TCX_EGRESS`].
///
/// # Errors
/// `EINVAL` if the kernel has no such hooks (below 6.6), `ENODEV` if the device is gone.
pub fn device_programs(index: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    // 64 is BPF_MPROG_MAX (include/linux/bpf_mprog.h).
    let mut ids = [0_u32; 64];
    // target_ifindex, attach_type; query_flags, attach_flags; prog_ids; count; prog_attach_flags; link_ids; link_attach_flags;
    // revision, which the kernel writes
    let mut attr = [join32(index, attach_type), 0, ids.as_mut_ptr() as u64, join32(64, 0), 0, 0, 0, 0];
    bpf(PROG_QUERY, &mut attr)?;
    Ok(ids.into_iter().filter(|id| *id != 0).collect())
}

/// What a socket storage map holds for a socket, in memory order. `N` must be the map's value size.
///
/// # Errors
/// `ENOENT` if the socket has no entry; `EINVAL` if `N` is not the value size.
pub fn socket_storage<const N: usize>(map: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<[u8; N]> {
    // The kernel writes as many bytes as a value has: the size is checked before it is given a place for them.
    let mut info = [0_u64; 3];
    // bpf_fd, info_len, info; of bpf_map_info: type, id, key_size, value_size, max_entries, map_flags
    let length = u32::try_from(size_of_val(&info)).unwrap_or(u32::MAX);
    bpf(OBJ_GET_INFO_BY_FD, &mut [join32(number(map), length), info.as_mut_ptr() as u64])?;
    let (_, value_size) = split32(info[1]);
    if usize::try_from(value_size) != Ok(N) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let key = number(socket);
    let mut value = [0_u8; N];
    // map_fd, key, value, flags
    let mut attr = [join32(number(map), 0), &raw const key as u64, value.as_mut_ptr() as u64, 0];
    bpf(MAP_LOOKUP_ELEM, &mut attr)?;
    Ok(value)
}

/// An array of maps with one element: updating the element waits for an RCU grace period (kernel/bpf/syscall.c,
/// `maybe_wait_bpf_programs`).
#[derive(Debug)]
pub struct GraceMap {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl GraceMap {
    /// Creates the two maps.
    ///
    /// # Errors
    /// `EPERM` without `CAP_BPF`.
    pub fn create() -> io::Result<Self> {
        let create = |kind: u32, inner: u32| {
            // map_type, key_size, value_size, max_entries, map_flags, inner_map_fd
            bpf(MAP_CREATE, &mut [join32(kind, 4), join32(4, 1), join32(0, inner), 0, 0, 0]).and_then(owned)
        };
        let inner = create(MAP_TYPE_ARRAY, 0)?;
        let outer = create(MAP_TYPE_ARRAY_OF_MAPS, number(inner.as_fd()))?;
        Ok(Self { outer, inner })
    }

    /// Blocks until every program that runs now has ended.
    ///
    /// # Errors
    /// Those of `BPF_MAP_UPDATE_ELEM`; none is expected.
    pub fn wait(&self) -> io::Result<()> {
        let key = 0_u32;
        let value = number(self.inner.as_fd());
        let mut attr =
            [join32(number(self.outer.as_fd()), 0), &raw const key as u64, &raw const value as u64, 0];
        bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
    }
}

/// Cookie of the calling thread's network namespace.
///
/// # Errors
/// `ENOPROTOOPT` below kernel 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: both pointers are valid for the call, and `length` says how many bytes the kernel may write.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Lets this process lock any amount of memory: below kernel 5.11 maps count against `RLIMIT_MEMLOCK`.
///
/// # Errors
/// `EPERM` without `CAP_SYS_RESOURCE`.
pub fn unlimit_memlock() -> io::Result<()> {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is valid for the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
