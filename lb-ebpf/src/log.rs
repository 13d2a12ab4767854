//! A record of each decision, in builds with the feature `log`; nothing in others.

use aya_ebpf::programs::SockAddrContext;
use lb_common::{abi::L4Addr, datapath::sock::Verdict};

/// Tells what a connect() or sendmsg() to `to` came to, at level debug. Destinations that are not ours are not worth a
/// line.
#[cfg(feature = "log")]
#[inline(always)]
pub(crate) fn verdict(ctx: &SockAddrContext, to: L4Addr, verdict: Verdict) {
    match verdict {
        Verdict::Pass => {}
        Verdict::To(at) => {
            aya_log_ebpf::debug!(
                ctx,
                "[{:i}]:{} -> [{:i}]:{}",
                to.addr.octets,
                to.port,
                at.addr.octets,
                at.port
            );
        }
        Verdict::Refuse | Verdict::RefuseHere => {
            aya_log_ebpf::debug!(ctx, "[{:i}]:{} refused", to.addr.octets, to.port);
        }
    }
}

/// Without the feature: no instruction.
#[cfg(not(feature = "log"))]
#[inline(always)]
pub(crate) const fn verdict(_ctx: &SockAddrContext, _to: L4Addr, _verdict: Verdict) {}
