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
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 11] = [
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
