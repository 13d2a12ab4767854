//! Why a hook did what it did: one number, one name, one help text.

/// Index into `lb_reasons`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum Reason {
    /// A connect() was translated.
    Connect = 0,
    /// A datagram of an unconnected socket was translated.
    Send = 1,
    /// A connect() to a service port without endpoints, or to an unused port of a cluster IP, was refused.
    RefusedConnect = 2,
    /// A datagram to a service port without endpoints, or to an unused port of a cluster IP, was refused.
    RefusedSend = 3,
    /// A look-up in `lb_frontends` returned another key's value and was repeated.
    ForeignFrontend = 4,
    /// A frontend names a service, or a run names a slot, outside its array.
    Dangling = 5,
    /// Socket storage could not be allocated: the backend's own address will be shown.
    NoStorage = 6,
    /// A socket's backend was gone and its next datagram chose another one.
    Moved = 7,
    /// A connection or datagram was left alone because all endpoints of its service port are on other nodes.
    Elsewhere = 8,
    /// A connection or datagram to a load-balancer address with source ranges was left alone.
    Restricted = 9,
    /// A client with session affinity was given another backend than it had before.
    AffinityMoved = 10,
    /// A packet opened a flow to a backend.
    Flow = 11,
    /// A packet to a service port without endpoints, or to an unused port of a cluster IP, was refused.
    RefusedPacket = 12,
    /// A packet was dropped: policy Local, and all endpoints are on other nodes.
    DroppedElsewhere = 13,
    /// A packet was dropped: its sender is not in the source ranges.
    DroppedRestricted = 14,
    /// A packet was dropped: no port is free for masquerading towards this backend.
    NoPort = 15,
    /// A packet was dropped: no route leads to the backend, or by a device that is not served.
    NoRoute = 16,
    /// A packet was dropped: its flow could not be written.
    NoFlow = 17,
    /// A flow that proved both directions could not be kept: the table is full. Tried again with a packet of it eight seconds later.
    NotKept = 18,
    /// A packet was dropped: it has been forwarded too often.
    TtlExceeded = 19,
    /// A packet from outside with an address of this node as its source was left alone.
    Martian = 20,
    /// A refused packet got no answer: its CPU has sent enough ICMP errors for the moment.
    Unanswered = 21,
    /// An ICMP error about a flow was translated.
    IcmpError = 22,
    /// A packet of a known flow was sent on at XDP.
    Express = 23,
    /// A packet was not sent on: the way to its backend takes smaller ones only.
    TooBig = 24,
    /// A packet was dropped: cluster IPs are taken from the range of its destination, and no Service has that.
    DroppedUnallocated = 25,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 26] = [
        Self::Connect,
        Self::Send,
        Self::RefusedConnect,
        Self::RefusedSend,
        Self::ForeignFrontend,
        Self::Dangling,
        Self::NoStorage,
        Self::Moved,
        Self::Elsewhere,
        Self::Restricted,
        Self::AffinityMoved,
        Self::Flow,
        Self::RefusedPacket,
        Self::DroppedElsewhere,
        Self::DroppedRestricted,
        Self::NoPort,
        Self::NoRoute,
        Self::NoFlow,
        Self::NotKept,
        Self::TtlExceeded,
        Self::Martian,
        Self::Unanswered,
        Self::IcmpError,
        Self::Express,
        Self::TooBig,
        Self::DroppedUnallocated,
    ];

    /// Name in metrics and tools.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Send => "send",
            Self::RefusedConnect => "refused_connect",
            Self::RefusedSend => "refused_send",
            Self::ForeignFrontend => "foreign_frontend",
            Self::Dangling => "dangling",
            Self::NoStorage => "no_storage",
            Self::Moved => "moved",
            Self::Elsewhere => "elsewhere",
            Self::Restricted => "restricted",
            Self::AffinityMoved => "affinity_moved",
            Self::Flow => "flow",
            Self::RefusedPacket => "refused_packet",
            Self::DroppedElsewhere => "dropped_elsewhere",
            Self::DroppedRestricted => "dropped_restricted",
            Self::NoPort => "no_port",
            Self::NoRoute => "no_route",
            Self::NoFlow => "no_flow",
            Self::NotKept => "not_kept",
            Self::TtlExceeded => "ttl_exceeded",
            Self::Martian => "martian",
            Self::Unanswered => "unanswered",
            Self::IcmpError => "icmp_error",
            Self::Express => "express",
            Self::TooBig => "too_big",
            Self::DroppedUnallocated => "dropped_unallocated",
        }
    }

    /// One sentence for people.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Connect => "connect() calls translated to a backend",
            Self::Send => "datagrams of unconnected sockets translated to a backend",
            Self::RefusedConnect => "connect() calls refused: no endpoint, or no such port of the cluster IP",
            Self::RefusedSend => "datagrams refused: no endpoint, or no such port of the cluster IP",
            Self::ForeignFrontend => "frontend look-ups that met an element being reused and were repeated",
            Self::Dangling => "references outside their array; any value above 0 is a fault of the agent",
            Self::NoStorage => {
                "sockets that show the backend's address because socket storage could not be allocated"
            }
            Self::Moved => "sockets whose backend was gone and whose next datagram chose another one",
            Self::Elsewhere => {
                "connections and datagrams left alone: policy Local, and all endpoints are on other nodes"
            }
            Self::Restricted => {
                "connections and datagrams to load-balancer addresses left alone: the client may not be in the source ranges"
            }
            Self::AffinityMoved => "connections of clients with affinity whose former backend is gone",
            Self::Flow => "flows opened by packets",
            Self::RefusedPacket => "packets refused: no endpoint, or no such port of the cluster IP",
            Self::DroppedElsewhere => "packets dropped: policy Local, and all endpoints are on other nodes",
            Self::DroppedRestricted => "packets dropped: their sender is not in the source ranges",
            Self::NoPort => "packets dropped: no port is free for masquerading towards their backend",
            Self::NoRoute => {
                "packets dropped: no route leads to their backend, or one by a device that is not served"
            }
            Self::NoFlow => "packets dropped: their flow could not be written",
            Self::NotKept => {
                "flows that could not be kept because the table is full, counted again every eight seconds"
            }
            Self::TtlExceeded => "packets dropped: they have been forwarded too often",
            Self::Martian => "packets from outside with an address of this node as their source, left alone",
            Self::Unanswered => "refused packets without an answer: ICMP errors are limited",
            Self::IcmpError => "ICMP errors about a flow that were translated",
            Self::Express => "packets sent on at XDP, before the kernel has made anything of them",
            Self::TooBig => {
                "packets whose sender was told that the way to their backend takes smaller ones only"
            }
            Self::DroppedUnallocated => "packets dropped: no Service has their cluster IP",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions() {
        for (position, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position, "{}", reason.name());
        }
    }
}
