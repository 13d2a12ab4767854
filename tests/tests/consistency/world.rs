//! The Services, and backends whose addresses say whose they are and since when.
//!
//! Service `number` has the cluster IP `172.16.number.1`, or `fd01::number` if it is odd. Its endpoints follow from the number
//! of its last change: every change brings between two and four of them, each of which stays for one to three changes. So
//! most Services need regions of one size, and what one gives back the next one takes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use lb_agent::compile::{Frontend, FrontendKind, Policies, PortEntries, PortKey, Target};
use lb_agent::model::{Algorithm, Family, Protocol, ServiceName};
use lb_agent::reconcile::Desired;

/// Number of Services.
pub(crate) const ALL: u32 = 80;

/// Longest stay of an endpoint, in changes.
const LONGEST_STAY: u32 = 3;

/// Changes after which addresses come again.
const CHANGES: u32 = 1 << 14;

/// What a Service is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// UDP sockets that connect. Nobody listens there.
    Connected,
    /// UDP sockets that send without connecting.
    Datagrams,
    /// TCP connections.
    Streams,
    /// As [`Kind::Connected`], and it is deleted and made again: ids, slots and hash elements go from one to another.
    Guest,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Connected, Self::Datagrams, Self::Streams, Self::Guest];

    /// The Services of this kind. All but guests always have endpoints.
    pub(crate) const fn numbers(self) -> Range<u32> {
        match self {
            Self::Connected => 0..32,
            Self::Datagrams => 32..48,
            Self::Streams => 48..64,
            Self::Guest => 64..ALL,
        }
    }

    /// How many of them are changed most often at one time.
    pub(crate) const fn hot(self) -> u32 {
        match self {
            Self::Connected | Self::Guest => 4,
            Self::Datagrams | Self::Streams => 2,
        }
    }

    /// What Service `number` is there for.
    pub(crate) fn of(number: u32) -> Self {
        Self::ALL.into_iter().find(|kind| kind.numbers().contains(&number)).unwrap()
    }
}

/// Whether Service `number` is there after its change `change`.
pub(crate) fn is_there(number: u32, change: u32) -> bool {
    Kind::of(number) != Kind::Guest || change.is_multiple_of(2)
}

/// The unspecified address of the family of Service `number`.
pub(crate) fn any(number: u32) -> IpAddr {
    if number.is_multiple_of(2) { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Where Service `number` accepts traffic.
pub(crate) fn frontend(number: u32) -> SocketAddr {
    let addr = if number.is_multiple_of(2) {
        IpAddr::from((0xac10_0001 | number << 8).to_be_bytes())
    } else {
        IpAddr::from((0xfd01_u128 << 112 | u128::from(number)).to_be_bytes())
    };
    SocketAddr::new(addr, 80)
}

/// Port of all backends of Service `number` that have somebody who listens.
pub(crate) fn listening_port(number: u32) -> u16 {
    10_000 + u16::try_from(number).unwrap()
}

/// One endpoint of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    /// The change that brought it, modulo [`CHANGES`].
    pub(crate) change: u32,
    /// Which one of those that this change brought.
    index: u32,
}

impl Origin {
    /// Its address: everything in it follows from the 24 bits that say who it is, in IPv6 both halves and the port too,
    /// so that one which is put together of two backends is nobody's.
    pub(crate) fn addr(self, number: u32) -> SocketAddr {
        let code = number << 17 | self.index << 14 | (self.change % CHANGES);
        let addr = if number.is_multiple_of(2) {
            IpAddr::from((10 << 24 | code).to_be_bytes())
        } else {
            let half = u128::from(code);
            IpAddr::from((0xfd00_u128 << 112 | half << 64 | half).to_be_bytes())
        };
        let port = match Kind::of(number) {
            // From 1024 on, and not a simple function of the address.
            Kind::Connected | Kind::Guest => 1024 + u16::try_from(mixed(u64::from(code)) % 60_000).unwrap(),
            Kind::Datagrams | Kind::Streams => listening_port(number),
        };
        SocketAddr::new(addr, port)
    }

    /// Who has an address; nothing if it is no backend of Service `number`.
    pub(crate) fn of(number: u32, addr: SocketAddr) -> Option<Self> {
        let code = match addr.ip() {
            IpAddr::V4(v4) => u32::from(v4),
            IpAddr::V6(v6) => u32::try_from(u128::from(v6) & 0xff_ffff).unwrap(),
        };
        let origin = Self { change: code % CHANGES, index: code >> 14 & 7 };
        (origin.addr(number) == addr).then_some(origin)
    }

    /// For how many changes it stays, the one that brought it included.
    fn stay(self, number: u32) -> u32 {
        if Kind::of(number) == Kind::Guest {
            return 1;
        }
        let seed = u64::from(number) << 48 | u64::from(self.change % CHANGES) << 16 | u64::from(self.index);
        1 + u32::try_from(mixed(seed) % u64::from(LONGEST_STAY)).unwrap()
    }

    /// Whether it is an endpoint of its Service after some change of `first..=last`.
    pub(crate) fn is_there_between(self, number: u32, first: u32, last: u32) -> bool {
        // The latest change until `last` that can have brought it.
        let since = last.wrapping_sub(last.wrapping_sub(self.change) % CHANGES);
        let is_one_of_them = self.index < brought(number, since);
        is_one_of_them
            && since <= last
            && (first.max(since)..=last)
                .any(|change| is_there(number, change) && change - since < self.stay(number))
    }
}

/// How many endpoints a change brings.
fn brought(number: u32, change: u32) -> u32 {
    2 + u32::try_from(mixed(u64::from(number) << 32 | u64::from(change % CHANGES)) % 3).unwrap()
}

/// The endpoints of a Service after a change.
pub(crate) fn endpoints(number: u32, change: u32) -> Vec<SocketAddr> {
    let mut endpoints: Vec<SocketAddr> = (change.saturating_sub(LONGEST_STAY - 1)..=change)
        .flat_map(|since| {
            (0..brought(number, since)).map(move |index| (since, Origin { change: since % CHANGES, index }))
        })
        .filter(|(since, origin)| change - since < origin.stay(number))
        .map(|(_, origin)| origin.addr(number))
        .collect();
    endpoints.sort_unstable();
    endpoints
}

/// A Service after a change, as compile would give it.
pub(crate) fn desired(number: u32, change: u32) -> Desired {
    let name = ServiceName::new("ns", &format!("s{number}"));
    let key = PortKey {
        service: name.clone(),
        port: "".into(),
        protocol: if Kind::of(number) == Kind::Streams { Protocol::Tcp } else { Protocol::Udp },
        family: if number.is_multiple_of(2) { Family::V4 } else { Family::V6 },
    };
    let port = PortEntries {
        key,
        frontends: vec![Frontend { at: frontend(number), kind: FrontendKind::ClusterIp }],
        cluster: endpoints(number, change)
            .into_iter()
            .map(|at| Target { at, terminating: false, here: false })
            .collect(),
        local: Vec::new(),
        draining: Vec::new(),
        policies: Policies { has_any: true, ..Policies::default() },
        ranges: Vec::new(),
        affinity_s: 0,
        algorithm: Algorithm::Random,
    };
    let ports = if is_there(number, change) { vec![port] } else { Vec::new() };
    Desired { name, created_s: i64::from(number), ports }
}

/// A number that has nothing to do with `seed` to the eye (splitmix64).
pub(crate) fn mixed(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Random numbers, the same ones for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(1);
        u32::try_from(mixed(self.0) % u64::from(end)).unwrap()
    }

    /// Yes, once in `times`.
    pub(crate) fn once_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }
}
