//! Tells the agent the cookie of its network namespace, which a process cannot ask for below kernel 5.14 but a program
//! at connect() can from 5.7 on. Runs for one connect() of the agent's, in an object that is loaded for nothing else.
#![expect(unsafe_code, reason = "helpers take the raw context, and a map value is written through a pointer")]

use aya_ebpf::{
    EbpfContext as _, Global,
    btf_maps::Array,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::btf_map,
    programs::SockAddrContext,
};

/// Cookie of the socket whose namespace is asked for; no socket has 0.
#[unsafe(no_mangle)]
static LB_ASKING_SOCKET: Global<u64> = Global::new(0);

/// Cookie of that socket's network namespace; 0 until it has called connect().
#[btf_map(name = "lb_netns_cookie")]
static ANSWER: Array<u64, 1> = Array::new();

/// Answers if the socket at hand is the asking one. Others are not looked at.
#[inline(always)]
pub(crate) fn answer(ctx: &SockAddrContext) {
    // SAFETY: the context is valid for the program's run.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if socket != LB_ASKING_SOCKET.load() {
        return;
    }
    // SAFETY: the context is valid for the program's run.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if let Some(value) = ANSWER.get_ptr_mut(0) {
        // SAFETY: the pointer is a live map value of 8 aligned bytes.
        unsafe { value.write_volatile(cookie) };
    }
}
