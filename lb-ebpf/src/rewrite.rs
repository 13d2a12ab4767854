//! Rewriting a packet in `struct __sk_buff`.
#![expect(unsafe_code, reason = "packets, contexts and helpers are raw pointers")]

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_csum_update, bpf_l3_csum_replace, bpf_l4_csum_replace},
};
use core::ptr;
use lb_common::{
    abi::{Addr, Addr4, FlowKey, Proto},
    datapath::packet::{
        express::is_unfinished,
        parse::{self, Headers, Packet as _, Part as _, Piece},
        refuse::Answers,
        rewrite::{Difference, Header as _, rewrite_sctp},
    },
};

use crate::skb::Skb;

/// DF, in the third half word of an IPv4 header (RFC 791 3.1).
const DONT_FRAGMENT: u16 = 0x4000;

/// A packet without anything unusual: the words of its L4 header with other ports.
pub(crate) struct Plain {
    /// Of UDP the first two.
    words: [u32; 5],
    is_tcp: bool,
    /// Where its IP header begins.
    l3: usize,
    /// One is taken from its TTL.
    forwards: bool,
}

/// What a family's headers look like.
pub(crate) trait Layout: Answers {
    /// Rewrites a plain packet with a finished checksum, as [`Layout::rewrite`] and the rest of [`Skb::rewrite`] would, by a single write:
    /// each call of a helper costs as much as all the arithmetic.
    fn rewrite_plain(skb: &Skb, headers: &Headers<Self>, after: &FlowKey<Self>, plain: Plain) -> bool;
    /// Reads a packet whose IP header begins at `l3`.
    fn parse(skb: &Skb, l3: usize) -> Option<Headers<Self>>;
    /// Rewrites the addresses, and what depends on them in the IP header; `forwards` takes one from the TTL. Gives the difference that the
    /// pseudo header makes.
    fn rewrite(
        skb: &Skb,
        l3: usize,
        headers: &Headers<Self>,
        after: &FlowKey<Self>,
        forwards: bool,
    ) -> Option<u64>;
    /// Whether routers may make pieces of the packet.
    fn may_be_cut(skb: &Skb, l3: usize) -> bool;
    /// Whether the packet's own bytes make up for what the pseudo header changes, in a sum over the whole packet.
    const IP_HAS_CHECKSUM: bool;
}

/// Adds what a word's change does to an Internet checksum (RFC 1624).
#[inline(always)]
const fn change(sum: u64, old: u32, new: u32) -> u64 {
    sum + (!old) as u64 + new as u64
}

/// Folds to the 32 bits that the helpers take.
#[inline(always)]
const fn fold(sum: u64) -> u64 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum & 0xffff_ffff) + (sum >> 32)
}

impl Layout for Addr4 {
    const IP_HAS_CHECKSUM: bool = true;

    #[inline(always)]
    fn rewrite_plain(
        skb: &Skb,
        headers: &Headers<Self>,
        after: &FlowKey<Self>,
        Plain { words: [d, e, f, g, h], is_tcp, l3, forwards }: Plain,
    ) -> bool {
        let before = &headers.key;
        let Some(header) = skb.part::<20>(l3) else { return false };
        let ttl = if forwards { headers.ttl.wrapping_sub(1) } else { headers.ttl };
        let half = |ttl: u8| u16::from_ne_bytes([ttl, before.proto.number]);
        let checksum = Self::difference(before, after)
            .half(half(headers.ttl), half(ttl))
            .apply(header.load16(10).to_be())
            .to_ne_bytes();
        let [a, b, c] = [
            u32::from_ne_bytes([ttl, before.proto.number, checksum[0], checksum[1]]),
            after.src.word(),
            after.dst.word(),
        ];
        let at = l3 + 8;
        let written =
            if is_tcp { skb.store(at, &[a, b, c, d, e, f, g, h]) } else { skb.store(at, &[a, b, c, d, e]) };
        // The sum of the IP header is what it was; that of the rest makes up for the addresses, which are not in it.
        skb.add_to_sum(Self::difference(after, before));
        written
    }

    #[inline(always)]
    fn parse(skb: &Skb, l3: usize) -> Option<Headers<Self>> {
        parse::v4(skb, l3)
    }

    #[inline(always)]
    fn may_be_cut(skb: &Skb, l3: usize) -> bool {
        skb.part::<20>(l3).is_none_or(|header| header.load16(6) & DONT_FRAGMENT == 0)
    }

    #[inline(always)]
    fn rewrite(
        skb: &Skb,
        l3: usize,
        headers: &Headers<Self>,
        after: &FlowKey<Self>,
        forwards: bool,
    ) -> Option<u64> {
        let before = &headers.key;
        let words = |key: &FlowKey<Self>| [key.src.octets, key.dst.octets].map(u32::from_ne_bytes);
        let (old, new) = (words(before), words(after));
        let addresses = fold(change(change(0, old[0], new[0]), old[1], new[1]));
        let mut header = addresses;
        if forwards {
            let ttl = headers.ttl.wrapping_sub(1);
            let word = |ttl: u8| u32::from(u16::from_ne_bytes([ttl, before.proto.number]));
            header = fold(change(header, word(headers.ttl), word(ttl)));
            if !skb.store(l3 + 8, &ttl) {
                return None;
            }
        }
        if !skb.store(l3 + 12, &new) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "an offset in the headers")]
        let at = (l3 + 10) as u32;
        // SAFETY: the context is valid for the program's run.
        (unsafe { bpf_l3_csum_replace(skb.as_ptr(), at, 0, header, 0) } == 0).then_some(addresses)
    }
}

impl Layout for Addr {
    const IP_HAS_CHECKSUM: bool = false;

    #[inline(always)]
    fn rewrite_plain(
        skb: &Skb,
        headers: &Headers<Self>,
        after: &FlowKey<Self>,
        Plain { words: [j, k, l, m, n], is_tcp, l3, forwards }: Plain,
    ) -> bool {
        let Some(header) = skb.part::<40>(l3) else { return false };
        let old = header.load32(4);
        let ttl = if forwards { headers.ttl.wrapping_sub(1) } else { headers.ttl };
        let new = [old[0], old[1], old[2], ttl];
        let a = u32::from_ne_bytes(new);
        let ([b, c, d, e], [f, g, h, i]) = (after.src.to_net_words(), after.dst.to_net_words());
        let at = l3 + 4;
        let written = if is_tcp {
            skb.store(at, &[a, b, c, d, e, f, g, h, i, j, k, l, m, n])
        } else {
            skb.store(at, &[a, b, c, d, e, f, g, h, i, j, k])
        };
        if forwards {
            // The addresses and the checksum make up for each other; nothing does for the hop limit.
            skb.add_to_sum(Difference::default().word(u32::from_ne_bytes(old), a));
        }
        written
    }

    #[inline(always)]
    fn parse(skb: &Skb, l3: usize) -> Option<Headers<Self>> {
        parse::v6(skb, l3)
    }

    #[inline(always)]
    fn may_be_cut(_skb: &Skb, _l3: usize) -> bool {
        false
    }

    #[inline(always)]
    fn rewrite(
        skb: &Skb,
        l3: usize,
        headers: &Headers<Self>,
        after: &FlowKey<Self>,
        forwards: bool,
    ) -> Option<u64> {
        let (a, b) = (headers.key.src.to_net_words(), after.src.to_net_words());
        let (c, d) = (headers.key.dst.to_net_words(), after.dst.to_net_words());
        let mut sum = 0;
        for at in 0..4 {
            sum = change(change(sum, a[at], b[at]), c[at], d[at]);
        }
        // The header has no checksum that would make up for it in a sum over the packet, which some cards give.
        if forwards && !skb.store_summed(l3 + 7, [headers.ttl.wrapping_sub(1)]) {
            return None;
        }
        skb.store(l3 + 8, &[b, d]).then_some(fold(sum))
    }
}

impl Skb {
    /// The L4 header with the new ports and checksum, of a packet that has nothing unusual: nothing of others.
    #[inline(always)]
    fn plain<A: Layout>(
        &self,
        l3: usize,
        headers: &Headers<A>,
        after: &FlowKey<A>,
        forwards: bool,
    ) -> Option<Plain> {
        let proto = headers.key.proto;
        let is_plain = headers.l4 == l3 + A::LEN && headers.fragment.piece == Piece::Whole;
        if !is_plain || !matches!(proto, Proto::TCP | Proto::UDP) || is_unfinished(self, l3, headers) {
            return None;
        }
        // Loaded once more: the verifier of 5.10 takes what was asked above for TCP only, and what follows for UDP for code that nobody
        // reaches, which it replaces.
        // SAFETY: a reference is valid for reads.
        let is_tcp = unsafe { ptr::from_ref(&headers.key.proto.number).read_volatile() } == Proto::TCP.number;
        let ports = |key: &FlowKey<A>| u32::from(key.sport.to_be()) + (u32::from(key.dport.to_be()) << 16);
        let (old, new) = (ports(&headers.key), ports(after));
        let change = A::difference(&headers.key, after).word(old, new);
        let at = l3 + A::LEN;
        if is_tcp {
            let part = self.part::<20>(at)?;
            let [a, b, c] = [4, 8, 12].map(|word| u32::from_ne_bytes(part.load32(word)));
            let [first, second, third, fourth] = part.load32(16);
            let [first, second] = change.apply(u16::from_ne_bytes([first, second])).to_ne_bytes();
            let last = u32::from_ne_bytes([first, second, third, fourth]);
            return Some(Plain { words: [new, a, b, c, last], is_tcp, l3, forwards });
        }
        let [first, second, third, fourth] = self.part::<8>(at)?.load32(4);
        let old = u16::from_ne_bytes([third, fourth]);
        // RFC 768: none at all stays none, and what comes to 0 is sent as its complement.
        if old == 0 {
            return None;
        }
        let checksum = change.apply(old);
        let [third, fourth] = if checksum == 0 { [u8::MAX; 2] } else { checksum.to_ne_bytes() };
        let last = u32::from_ne_bytes([first, second, third, fourth]);
        Some(Plain { words: [new, last, 0, 0, 0], is_tcp, l3, forwards })
    }

    /// [`Skb::rewrite`], in the way that is shorter for nearly all packets.
    #[inline(always)]
    pub(crate) fn rewrite_known<A: Layout>(
        &self,
        l3: usize,
        headers: &Headers<A>,
        after: &FlowKey<A>,
        forwards: bool,
    ) -> bool {
        // Whoever leaves the tags in the frame has time.
        let plain = if self.rare { None } else { self.plain(l3, headers, after, forwards) };
        match plain {
            Some(plain) => A::rewrite_plain(self, headers, after, plain),
            None => self.rewrite(l3, headers, after, forwards),
        }
    }

    /// Adds to the sum over the packet, if the network card has given one.
    #[inline(always)]
    fn add_to_sum(&self, difference: Difference) {
        #[expect(clippy::cast_possible_truncation, reason = "folded")]
        let difference = difference.folded() as u32;
        // SAFETY: the context is valid for the program's run. Without a sum it refuses, which is as well.
        let _sum = unsafe { bpf_csum_update(self.as_ptr(), difference) };
    }

    /// Makes the packet one of `after`. False if it cannot be written; then some of it may be.
    #[inline(always)]
    pub(crate) fn rewrite<A: Layout>(
        &self,
        l3: usize,
        headers: &Headers<A>,
        after: &FlowKey<A>,
        forwards: bool,
    ) -> bool {
        let Some(addresses) = A::rewrite(self, l3, headers, after, forwards) else { return false };
        if headers.fragment.is_later() {
            // The ports and the checksum of the whole are in the first one. A sum over this one's bytes has changed, unless the header's
            // checksum makes up for that.
            if !A::IP_HAS_CHECKSUM {
                #[expect(clippy::cast_possible_truncation, reason = "folded")]
                // SAFETY: the context is valid for the program's run.
                let _sum = unsafe { bpf_csum_update(self.as_ptr(), addresses as u32) };
            }
            return true;
        }
        let (checksum, flags) = match headers.key.proto {
            Proto::TCP => (16, 0),
            Proto::UDP => (6, BPF_F_MARK_MANGLED_0),
            Proto::SCTP => return rewrite_sctp(&mut Self::rare(self.as_ptr()), l3, headers, after),
            _ => return true,
        };
        #[expect(clippy::cast_possible_truncation, reason = "an offset in the headers")]
        let at = (headers.l4 + checksum) as u32;
        let pseudo = u64::from(flags | BPF_F_PSEUDO_HDR);
        // SAFETY: the context is valid for the program's run.
        if unsafe { bpf_l4_csum_replace(self.as_ptr(), at, 0, addresses, pseudo) } != 0 {
            return false;
        }
        if !A::IP_HAS_CHECKSUM {
            // The helper takes the sum over the packet for one that changes with the pseudo header, as under IPv4; here the addresses
            // themselves have changed in it, which makes up for that. Nothing for packets without such a sum.
            #[expect(clippy::cast_possible_truncation, reason = "folded")]
            // SAFETY: as above.
            let _sum = unsafe { bpf_csum_update(self.as_ptr(), addresses as u32) };
        }
        let ports = |key: &FlowKey<A>| [key.sport.to_be(), key.dport.to_be()];
        let (old, new) = (ports(&headers.key), ports(after));
        if old == new {
            return true;
        }
        let word = |ports: [u16; 2]| u32::from(ports[0]) + (u32::from(ports[1]) << 16);
        let sum = fold(change(0, word(old), word(new)));
        // SAFETY: as above.
        if unsafe { bpf_l4_csum_replace(self.as_ptr(), at, 0, sum, flags.into()) } != 0 {
            return false;
        }
        self.store(headers.l4, &new)
    }
}
