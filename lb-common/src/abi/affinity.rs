//! Session affinity: which backend a client had last.

use super::{Addr, BackendId, L4Addr, ServiceId, mix};

/// Whose connections go to one backend.
///
/// An address where one is known: where packets are seen. A connect() happens before the source address is chosen, so
/// there the client is its network namespace, which is one pod, or the host (SA-13). The two are told apart, and one
/// that uses both paths may have two backends.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Client {
    /// A source address; of a network namespace its cookie in an address that is never a source, see
    /// [`Client::of_netns`].
    pub addr: Addr,
}

impl Client {
    /// The client behind a source address.
    pub const fn of_addr(addr: Addr) -> Self {
        Self { addr }
    }

    /// The sockets of the network namespace with this cookie: `ff00::` and the cookie in network order. A multicast
    /// address is no packet's source (RFC 4291 2.7).
    pub const fn of_netns(cookie: u64) -> Self {
        let high = u32::from_ne_bytes([0xff, 0, 0, 0]);
        let [a, b, c, d, e, f, g, h] = cookie.to_be_bytes();
        let words = [high, 0, u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])];
        Self { addr: Addr::from_net_words(words) }
    }
}

/// Key of `lb_affinity`: a client and a service port (SA-1).
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AffinityKey {
    /// Who asks.
    pub client: Client,
    /// For what.
    pub service: ServiceId,
    /// [`super::Service::generation`]: entries of a former owner of the id, and of a time before affinity was switched
    /// off, are never found again (SA-5).
    pub generation: u32,
}

/// Value of `lb_affinity`.
///
/// The element behind a look-up may be given to another key at any moment, so `check` is a fold of the key and of
/// everything that never changes in place. `seen_ms` alone is stored in place: if that meets another key's element, an
/// entry that is not ours lives longer by less than the time since its own last use, which harms nobody.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Affinity {
    /// Milliseconds of the monotonic clock when the client connected last.
    pub seen_ms: u64,
    /// Where to, network order.
    pub addr: Addr,
    /// Where to, host order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
    /// Who that is in `lb_backends`.
    pub backend: BackendId,
    /// Generation of that id when it was chosen.
    pub generation: u32,
    /// See above; never 0.
    pub check: u32,
}

const _: () = assert!(size_of::<AffinityKey>() == 24 && size_of::<Affinity>() == 40, "no padding");

impl AffinityKey {
    /// Nobody's.
    pub const NONE: Self =
        Self { client: Client { addr: Addr::ANY_V6 }, service: ServiceId { index: 0 }, generation: 0 };
}

impl Affinity {
    /// Of no key.
    pub const NONE: Self = Self {
        seen_ms: 0,
        addr: Addr::ANY_V6,
        port: 0,
        pad: 0,
        backend: BackendId::NONE,
        generation: 0,
        check: 0,
    };

    /// That the client of `key` went to `target`, which is `backend` in its `generation`, at `now_ms`.
    pub const fn new(
        key: &AffinityKey,
        target: L4Addr,
        (backend, generation): (BackendId, u32),
        now_ms: u64,
    ) -> Self {
        let entry = Self {
            seen_ms: now_ms,
            addr: target.addr,
            port: target.port,
            pad: 0,
            backend,
            generation,
            check: 0,
        };
        Self { check: entry.fold(key), ..entry }
    }

    const fn fold(&self, key: &AffinityKey) -> u32 {
        let mut x = mix(0x6166, key.client.addr.to_net_words());
        x = mix(x, self.addr.to_net_words());
        x = mix(x, [key.service.index, key.generation, self.backend.index, self.generation]);
        mix(x, [self.port as u32, 0, 0, 0]) | 1
    }

    /// Whether the entry is that of `key`, and whole.
    pub const fn is_of(&self, key: &AffinityKey) -> bool {
        self.check == self.fold(key)
    }

    /// Where the client went.
    pub const fn target(&self) -> L4Addr {
        L4Addr { addr: self.addr, port: self.port }
    }

    /// Whether the entry still counts at `now_ms`, `timeout_s` seconds after the last connection (SA-2).
    pub const fn is_fresh(&self, now_ms: u64, timeout_s: u32) -> bool {
        now_ms.saturating_sub(self.seen_ms) <= (timeout_s as u64).wrapping_mul(1000)
    }

    /// Whether a connection at `now_ms` is to be noted. Not every one is: an entry may end early by a 64th of its timeout,
    /// one second at most, so that a client that connects without a pause does not write without a pause.
    pub const fn is_due(&self, now_ms: u64, timeout_s: u32) -> bool {
        let tolerance = (timeout_s as u64).wrapping_mul(1000) >> 6;
        let tolerance = if tolerance < 1000 { tolerance } else { 1000 };
        now_ms.saturating_sub(self.seen_ms) > tolerance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> AffinityKey {
        AffinityKey {
            client: Client::of_netns(0x0102_0304_0506_0708),
            service: ServiceId { index: 5 },
            generation: 2,
        }
    }

    fn entry(key: &AffinityKey) -> Affinity {
        let target = L4Addr { addr: Addr::from_v4([10, 1, 0, 1]), port: 8080 };
        Affinity::new(key, target, (BackendId { index: 7 }, 3), 1000)
    }

    /// SA-13.
    #[test]
    fn a_namespace_is_a_client_that_no_address_is() {
        let cookie = key().client.addr;
        assert_eq!(cookie.octets, [0xff, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(!cookie.is_v4());
        assert_ne!(Client::of_netns(1), Client::of_netns(2));
    }

    /// SA-1.
    #[test]
    fn an_entry_is_that_of_one_client_and_one_service_port() {
        let key = key();
        let entry = entry(&key);
        assert!(entry.is_of(&key));
        for other in [
            AffinityKey { client: Client::of_netns(1), ..key },
            AffinityKey { service: ServiceId { index: 6 }, ..key },
            AffinityKey { generation: 3, ..key },
        ] {
            assert!(!entry.is_of(&other), "{other:?}");
        }
        for other in [
            Affinity { addr: Addr::from_v4([10, 1, 0, 2]), ..entry },
            Affinity { port: 8081, ..entry },
            Affinity { backend: BackendId { index: 8 }, ..entry },
            Affinity { generation: 4, ..entry },
        ] {
            assert!(!other.is_of(&key), "{other:?}");
        }
        assert!(Affinity { seen_ms: 9, ..entry }.is_of(&key), "the time is stored in place");
    }

    /// SA-2.
    #[test]
    fn an_entry_counts_until_its_timeout_after_the_last_connection() {
        let entry = entry(&key());
        assert!(entry.is_fresh(1000, 1) && entry.is_fresh(2000, 1) && !entry.is_fresh(2001, 1));
        assert!(entry.is_fresh(1000 + 86_400_000, 86_400) && !entry.is_fresh(1001 + 86_400_000, 86_400));
        // Another CPU's clock may be a little behind.
        assert!(entry.is_fresh(999, 1));
    }

    #[test]
    fn a_connection_is_noted_when_a_64th_of_the_timeout_or_a_second_has_passed() {
        let entry = entry(&key());
        assert!(!entry.is_due(1015, 1) && entry.is_due(1016, 1));
        assert!(!entry.is_due(2000, 10_800) && entry.is_due(2001, 10_800));
        assert!(!entry.is_due(999, 1));
    }
}
