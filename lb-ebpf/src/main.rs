//! Entry points of the BPF programs. Each is one line: the decisions are in `lb_common::datapath`.
#![no_std]
#![no_main]
#![expect(clippy::needless_pass_by_value, reason = "the macros call entry points with the context by value")]

mod flows;
mod functions;
mod license;
mod log;
mod maps;
mod netns;
mod panic;
mod probe;
mod rare;
mod rewrite;
mod routes;
mod skb;
mod sock;
mod tables;
mod tc;
mod xdp;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use lb_common::datapath::packet::Side;
use sock::{SockAddr4, SockAddr6};

/// connect() of an `AF_INET` socket.
#[cgroup_sock_addr(connect4)]
fn lb_connect4(ctx: SockAddrContext) -> i32 {
    sock::connect(&SockAddr4(&ctx))
}

/// connect() of an `AF_INET6` socket, IPv4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
fn lb_connect6(ctx: SockAddrContext) -> i32 {
    sock::connect(&SockAddr6(&ctx))
}

/// sendto() and sendmsg() with a destination on an `AF_INET` UDP socket.
#[cgroup_sock_addr(sendmsg4)]
fn lb_sendmsg4(ctx: SockAddrContext) -> i32 {
    sock::send(&SockAddr4(&ctx))
}

/// sendto() and sendmsg() with a destination on an `AF_INET6` UDP socket.
#[cgroup_sock_addr(sendmsg6)]
fn lb_sendmsg6(ctx: SockAddrContext) -> i32 {
    sock::send(&SockAddr6(&ctx))
}

/// recvfrom() and recvmsg() that ask for the source, on an `AF_INET` UDP socket.
#[cgroup_sock_addr(recvmsg4)]
fn lb_recvmsg4(ctx: SockAddrContext) -> i32 {
    sock::received(&SockAddr4(&ctx))
}

/// recvfrom() and recvmsg() that ask for the source, on an `AF_INET6` UDP socket.
#[cgroup_sock_addr(recvmsg6)]
fn lb_recvmsg6(ctx: SockAddrContext) -> i32 {
    sock::received(&SockAddr6(&ctx))
}

/// getpeername() of an `AF_INET` socket.
#[cgroup_sock_addr(getpeername4)]
fn lb_getpeername4(ctx: SockAddrContext) -> i32 {
    sock::peer(&SockAddr4(&ctx))
}

/// getpeername() of an `AF_INET6` socket.
#[cgroup_sock_addr(getpeername6)]
fn lb_getpeername6(ctx: SockAddrContext) -> i32 {
    sock::peer(&SockAddr6(&ctx))
}

/// connect() of the agent's own `AF_INET` socket, once and before the programs above, where the kernel tells nobody else.
#[cgroup_sock_addr(connect4)]
fn lb_ask_netns(ctx: SockAddrContext) -> i32 {
    netns::answer(&ctx);
    sock::ALLOW
}

/// Packets that come from a device.
#[classifier]
fn lb_tc_ingress(ctx: TcContext) -> i32 {
    tc::frame(&ctx, Side::Ingress)
}

/// Packets that leave by a device.
#[classifier]
fn lb_tc_egress(ctx: TcContext) -> i32 {
    tc::frame(&ctx, Side::Egress)
}

/// Packets that come from a device without Ethernet: a tunnel.
#[classifier]
fn lb_ip_ingress(ctx: TcContext) -> i32 {
    tc::bare(&ctx, Side::Ingress)
}

/// Packets that leave by a device without Ethernet.
#[classifier]
fn lb_ip_egress(ctx: TcContext) -> i32 {
    tc::bare(&ctx, Side::Egress)
}

/// Frames that come from a device, before the kernel makes packets of them.
#[xdp]
fn lb_xdp(ctx: XdpContext) -> u32 {
    xdp::frame(ctx.ctx)
}

/// Frames that come from a device that is tested before the program above is attached to it.
#[xdp]
fn lb_xdp_test(ctx: XdpContext) -> u32 {
    probe::frame(ctx.ctx)
}
