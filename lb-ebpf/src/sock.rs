//! `struct bpf_sock_addr` <-> `lb_common::datapath::sock`.
#![expect(unsafe_code, reason = "hook contexts, helpers and socket storage are raw pointers")]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a place behind a raw pointer and its volatile access are two operations to the lint"
)]

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr},
    helpers::{
        bpf_get_netns_cookie,
        generated::{bpf_set_retval, bpf_sk_storage_get, bpf_skc_to_mptcp_sock},
    },
    programs::SockAddrContext,
};
use lb_common::{
    abi::{Addr, BackendId, L4Addr, Proto, ServiceId, SockTcp, SockUdp, UDP_PEERS, UdpPeer},
    datapath::sock::{self, REFUSING_UDP_PORT, Socket, Verdict},
};

use crate::{log, maps, tables::BpfTables};

/// Return value of a sock_addr program: the system call goes on.
pub(crate) const ALLOW: i32 = 1;
/// Return value of a connect or sendmsg program: the system call fails, with `EPERM` or what `bpf_set_retval` chose.
const DENY: i32 = 0;
/// include/uapi/asm-generic/errno.h
const ECONNREFUSED: i32 = 111;

/// The address that a hook may read and rewrite.
pub(crate) trait Hook {
    /// The hook's context.
    fn ctx(&self) -> &SockAddrContext;
    /// The address as it is now.
    fn addr(&self) -> Addr;
    /// Replaces the address. `addr` has the family of [`Hook::addr`].
    fn set_addr(&self, addr: Addr);

    /// Address and port as they are now.
    #[inline(always)]
    fn at(&self) -> L4Addr {
        // SAFETY: the context is valid for the program's run.
        let port = unsafe { (&raw const (*self.ctx().sock_addr).user_port).read_volatile() };
        // The field holds a 16-bit port in network order, zero-extended.
        let [first, second, ..] = port.to_ne_bytes();
        L4Addr { addr: self.addr(), port: u16::from_be_bytes([first, second]) }
    }

    /// Replaces address and port.
    #[inline(always)]
    fn put(&self, at: L4Addr) {
        self.set_addr(at.addr);
        let [first, second] = at.port.to_be_bytes();
        let port = u32::from_ne_bytes([first, second, 0, 0]);
        // SAFETY: the context is valid for the program's run; a 2-byte store here is refused by the verifier.
        unsafe { (&raw mut (*self.ctx().sock_addr).user_port).write_volatile(port) };
    }

    /// `IPPROTO_*` of the socket.
    #[inline(always)]
    fn protocol(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        unsafe { (&raw const (*self.ctx().sock_addr).protocol).read_volatile() }
    }
}

/// Context of the `*4` hooks.
pub(crate) struct SockAddr4<'a>(pub(crate) &'a SockAddrContext);

impl Hook for SockAddr4<'_> {
    #[inline(always)]
    fn ctx(&self) -> &SockAddrContext {
        self.0
    }

    #[inline(always)]
    fn addr(&self) -> Addr {
        // SAFETY: the context is valid for the program's run.
        let word = unsafe { (&raw const (*self.0.sock_addr).user_ip4).read_volatile() };
        Addr::from_v4(word.to_ne_bytes())
    }

    #[inline(always)]
    fn set_addr(&self, addr: Addr) {
        let [.., word] = addr.to_net_words();
        // SAFETY: the context is valid for the program's run.
        unsafe { (&raw mut (*self.0.sock_addr).user_ip4).write_volatile(word) };
    }
}

/// Context of the `*6` hooks.
pub(crate) struct SockAddr6<'a>(pub(crate) &'a SockAddrContext);

impl SockAddr6<'_> {
    /// One word of the address. The verifier wants constant offsets into the context.
    #[inline(always)]
    fn word<const INDEX: usize>(&self) -> *mut u32 {
        // SAFETY: INDEX is 0..=3, so the pointer stays inside `user_ip6`.
        unsafe { (&raw mut (*self.0.sock_addr).user_ip6).cast::<u32>().add(INDEX) }
    }

    #[inline(always)]
    fn load<const INDEX: usize>(&self) -> u32 {
        // SAFETY: `word` points into the context, which is valid for the program's run.
        unsafe { self.word::<INDEX>().read_volatile() }
    }

    #[inline(always)]
    fn store<const INDEX: usize>(&self, word: u32) {
        // SAFETY: `word` points into the context, which is valid for the program's run.
        unsafe { self.word::<INDEX>().write_volatile(word) };
    }
}

impl Hook for SockAddr6<'_> {
    #[inline(always)]
    fn ctx(&self) -> &SockAddrContext {
        self.0
    }

    #[inline(always)]
    fn addr(&self) -> Addr {
        Addr::from_net_words([self.load::<0>(), self.load::<1>(), self.load::<2>(), self.load::<3>()])
    }

    #[inline(always)]
    fn set_addr(&self, addr: Addr) {
        let [first, second, third, fourth] = addr.to_net_words();
        self.store::<0>(first);
        self.store::<1>(second);
        self.store::<2>(third);
        self.store::<3>(fourth);
    }
}

/// The socket at hand, with its storage once it was opened.
struct BpfSocket<'a> {
    ctx: &'a SockAddrContext,
    udp: *mut SockUdp,
}

impl<'a> BpfSocket<'a> {
    #[inline(always)]
    const fn new(ctx: &'a SockAddrContext) -> Self {
        Self { ctx, udp: ptr::null_mut() }
    }

    /// `lb_sock_tcp` of the socket that the application holds; null if it does not exist, and with
    /// `BPF_SK_STORAGE_GET_F_CREATE` if there is no memory.
    ///
    /// MPTCP connects by a subflow, a TCP socket of its own: its connect hook has the subflow at hand, its getpeername
    /// hook the socket of the application.
    #[inline(always)]
    fn tcp_storage(&self, flags: u64) -> *mut SockTcp {
        // SAFETY: the context is valid for the program's run.
        let mut sk: *mut c_void = unsafe { (*self.ctx.sock_addr).__bindgen_anon_1.sk }.cast();
        if maps::LB_HAS_MPTCP.load() != 0 {
            // SAFETY: the helper takes any socket; the agent sets the switch only where it exists.
            let mptcp: *mut c_void = unsafe { bpf_skc_to_mptcp_sock(sk) }.cast();
            if !mptcp.is_null() {
                sk = mptcp;
            }
        }
        // SAFETY: a socket of the context, which is valid for the program's run.
        unsafe { Self::tcp_storage_of(sk, flags) }
    }

    /// `lb_sock_tcp` of this very socket, as [`Self::tcp_storage`].
    ///
    /// # Safety
    /// `sk` is a socket that lives while the program runs.
    #[inline(always)]
    unsafe fn tcp_storage_of(sk: *mut c_void, flags: u64) -> *mut SockTcp {
        let map = (&raw const maps::SOCK_TCP).cast_mut().cast();
        // SAFETY: `map` is socket storage of `SockTcp`, and the caller promises `sk`.
        unsafe { bpf_sk_storage_get(map, sk, ptr::null_mut(), flags) }.cast()
    }

    /// A pair of the open storage.
    #[inline(always)]
    fn pair(&self, index: u32) -> Option<*mut UdpPeer> {
        if self.udp.is_null() {
            return None;
        }
        // Masked, because the verifier must see the bound beside the use.
        let index = (index & (UDP_PEERS - 1)) as usize;
        // SAFETY: the storage is live while the program runs, and the index is inside `peers`.
        Some(unsafe { (&raw mut (*self.udp).peers).cast::<UdpPeer>().add(index) })
    }
}

impl Socket for BpfSocket<'_> {
    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: the context is valid for the program's run.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn is_host(&self) -> bool {
        let host = match maps::LB_HOST_NETNS.load() {
            // SAFETY: the helper takes NULL for the initial network namespace.
            0 => unsafe { bpf_get_netns_cookie(ptr::null_mut()) },
            cookie => cookie,
        };
        self.netns() == host
    }

    #[inline(always)]
    fn is_bound_to_device(&self) -> bool {
        // SAFETY: the context is valid for the program's run.
        let sk = unsafe { (*self.ctx.sock_addr).__bindgen_anon_1.sk };
        // SAFETY: the context's socket is valid for the program's run; the verifier wants the field read whole.
        unsafe { (&raw const (*sk).bound_dev_if).read_volatile() != 0 }
    }

    #[inline(always)]
    fn tcp(&self) -> Option<SockTcp> {
        let value = self.tcp_storage(0);
        if value.is_null() {
            return None;
        }
        // SAFETY: not null, so it is live storage; the socket lock is held by connect() and getpeername().
        Some(unsafe { *value })
    }

    #[inline(always)]
    fn remember_tcp(&mut self, sock: &SockTcp) -> bool {
        let stored = self.tcp_storage(BPF_SK_STORAGE_GET_F_CREATE.into());
        if stored.is_null() {
            return false;
        }
        // Volatile, because a plain assignment becomes a call of memmove, which the verifier refuses.
        // SAFETY: not null, so it is live storage.
        unsafe { stored.write_volatile(*sock) };
        true
    }

    /// Not through [`Self::tcp_storage`]: the kernel's path manager connects further subflows of MPTCP to the backend's
    /// own address, and the frontend stays what the application's socket shows. What is left: an application that gives
    /// up an MPTCP connection, and connects that socket to the backend itself, is shown the frontend of before.
    #[inline(always)]
    fn forget_tcp(&mut self) {
        // SAFETY: the context is valid for the program's run.
        let sk: *mut c_void = unsafe { (*self.ctx.sock_addr).__bindgen_anon_1.sk }.cast();
        // SAFETY: as above.
        let stored = unsafe { Self::tcp_storage_of(sk, 0) };
        if !stored.is_null() {
            // SAFETY: not null, so it is live storage.
            unsafe { (*stored).frontend_port = 0 };
        }
    }

    #[inline(always)]
    fn open_udp(&mut self, create: bool) -> bool {
        self.udp = if create {
            // SAFETY: the context's socket is valid for the program's run.
            unsafe { maps::SOCK_UDP.get_or_insert_ptr_mut(self.ctx, None) }
        } else {
            // SAFETY: the context's socket is valid for the program's run.
            unsafe { maps::SOCK_UDP.get_ptr_mut(self.ctx) }
        };
        !self.udp.is_null()
    }

    #[inline(always)]
    fn udp_peer(&self, index: u32) -> UdpPeer {
        match self.pair(index) {
            // SAFETY: `pair` points into live storage. Another thread may write: `UdpPeer::is_whole` tells.
            Some(pair) => unsafe { pair.read_volatile() },
            None => UdpPeer::NONE,
        }
    }

    #[inline(always)]
    fn udp_frontend(&self, index: u32) -> L4Addr {
        let Some(pair) = self.pair(index) else {
            return UdpPeer::NONE.frontend();
        };
        // SAFETY: `pair` points into live storage.
        let addr = unsafe { (&raw const (*pair).frontend_addr).cast::<[u32; 4]>().read_volatile() };
        // SAFETY: as above.
        let port = unsafe { (&raw const (*pair).frontend_port).read_volatile() };
        L4Addr { addr: Addr::from_net_words(addr), port }
    }

    #[inline(always)]
    fn udp_target(&self, index: u32) -> L4Addr {
        let Some(pair) = self.pair(index) else {
            return UdpPeer::NONE.target();
        };
        // SAFETY: `pair` points into live storage.
        let addr = unsafe { (&raw const (*pair).backend_addr).cast::<[u32; 4]>().read_volatile() };
        // SAFETY: as above.
        let port = unsafe { (&raw const (*pair).backend_port).read_volatile() };
        L4Addr { addr: Addr::from_net_words(addr), port }
    }

    #[inline(always)]
    fn udp_backend(&self, index: u32) -> Option<(BackendId, u32)> {
        let pair = self.pair(index)?;
        // SAFETY: `pair` points into live storage.
        let check = unsafe { (&raw const (*pair).check).read_volatile() };
        // SAFETY: as above.
        let index = unsafe { (&raw const (*pair).backend.index).read_volatile() };
        // SAFETY: as above.
        let generation = unsafe { (&raw const (*pair).generation).read_volatile() };
        (check != 0).then_some((BackendId { index }, generation))
    }

    #[inline(always)]
    fn udp_service(&self, index: u32) -> ServiceId {
        let Some(pair) = self.pair(index) else {
            return UdpPeer::NONE.service;
        };
        // SAFETY: `pair` points into live storage.
        let index = unsafe { (&raw const (*pair).service.index).read_volatile() };
        ServiceId { index }
    }

    #[inline(always)]
    fn void_udp_peer(&mut self, index: u32) {
        if let Some(pair) = self.pair(index) {
            // SAFETY: `pair` points into live storage; no whole pair has a check of 0.
            unsafe { (&raw mut (*pair).check).write_volatile(0) };
        }
    }

    #[inline(always)]
    fn put_udp_peer(&mut self, index: u32, peer: &UdpPeer) {
        if let Some(pair) = self.pair(index) {
            // SAFETY: `pair` points into live storage.
            unsafe { pair.write_volatile(*peer) };
        }
    }

    #[inline(always)]
    fn newest_udp(&self) -> u32 {
        if self.udp.is_null() {
            return 0;
        }
        // SAFETY: not null, so it is live storage.
        unsafe { (&raw const (*self.udp).newest).read_volatile() }
    }

    #[inline(always)]
    fn put_newest_udp(&mut self, index: u32) {
        if !self.udp.is_null() {
            // SAFETY: not null, so it is live storage.
            unsafe { (&raw mut (*self.udp).newest).write_volatile(index) };
        }
    }
}

/// The connect hooks.
#[inline(always)]
pub(crate) fn connect(hook: &impl Hook) -> i32 {
    let Some(proto) = Proto::of_socket(hook.protocol()) else {
        return ALLOW;
    };
    let to = hook.at();
    let verdict = sock::connect(&BpfTables::SOCKETS, &mut BpfSocket::new(hook.ctx()), proto, to);
    log::verdict(hook.ctx(), to, verdict);
    match verdict {
        Verdict::Pass => ALLOW,
        Verdict::To(target) => {
            hook.put(target);
            ALLOW
        }
        // Port 0 of the loopback address refuses every TCP connect() with the same error, on every kernel.
        Verdict::Refuse => refuse(hook, L4Addr { addr: to.addr.loopback(), port: 0 }),
        Verdict::RefuseHere => deny(),
    }
}

/// The sendmsg hooks.
#[inline(always)]
pub(crate) fn send(hook: &impl Hook) -> i32 {
    // UDP-Lite and raw sockets come here too.
    if hook.protocol() != u32::from(Proto::UDP.number) {
        return ALLOW;
    }
    let to = hook.at();
    let verdict = sock::send(&BpfTables::SOCKETS, &mut BpfSocket::new(hook.ctx()), to);
    log::verdict(hook.ctx(), to, verdict);
    match verdict {
        Verdict::Pass => ALLOW,
        Verdict::To(target) => {
            hook.put(target);
            ALLOW
        }
        Verdict::Refuse => refuse(hook, L4Addr { addr: to.addr.loopback(), port: REFUSING_UDP_PORT }),
        Verdict::RefuseHere => deny(),
    }
}

/// The recvmsg hooks, and getpeername of UDP sockets.
#[inline(always)]
pub(crate) fn received(hook: &impl Hook) -> i32 {
    if let Some(frontend) = sock::received(&mut BpfSocket::new(hook.ctx()), hook.at()) {
        hook.put(frontend);
    }
    ALLOW
}

/// The getpeername hooks.
#[inline(always)]
pub(crate) fn peer(hook: &impl Hook) -> i32 {
    match Proto::of_socket(hook.protocol()) {
        Some(Proto::UDP) => received(hook),
        Some(_) => {
            if let Some(frontend) = sock::peer(&BpfSocket::new(hook.ctx()), hook.at()) {
                hook.put(frontend);
            }
            ALLOW
        }
        None => ALLOW,
    }
}

/// Makes the system call fail with `ECONNREFUSED`: directly where the kernel can, else by sending it to an address
/// that refuses.
#[inline(always)]
fn refuse(hook: &impl Hook, refusing: L4Addr) -> i32 {
    if maps::LB_HAS_SET_RETVAL.load() == 0 {
        hook.put(refusing);
        return ALLOW;
    }
    deny()
}

/// Makes the system call fail: with `ECONNREFUSED` where the kernel lets a hook choose, else with `EPERM`.
#[inline(always)]
fn deny() -> i32 {
    if maps::LB_HAS_SET_RETVAL.load() != 0 {
        // SAFETY: the helper has no preconditions; the agent sets the switch only where it exists.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    DENY
}

const _: () =
    assert!(size_of::<bpf_sock_addr>() >= 60, "the context of kernel 5.10 has user_port and protocol");
