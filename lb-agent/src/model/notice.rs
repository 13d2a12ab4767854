//! What a person should hear about a Service: which field cannot be used, why, and what to do.

use core::fmt;
use core::net::IpAddr;

use super::{Family, Protocol, ServiceName};

/// A field of an object that could not be used. The rest of the object is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Fault {
    /// Path as `kubectl explain` writes it, with indexes: `spec.externalIPs[1]`. Fields of a slice carry its name:
    /// `endpointslice web-x7k2p: endpoints[3].addresses[0]`.
    pub field: Box<str>,
    /// Why.
    pub reason: Reason,
}

impl Fault {
    /// A fault of `field`.
    pub fn new(field: impl Into<Box<str>>, reason: Reason) -> Self {
        Self { field: field.into(), reason }
    }
}

/// A [`Fault`] with the Service it belongs to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Notice {
    /// The Service.
    pub service: ServiceName,
    /// Path of the field, see [`Fault::field`].
    pub field: Box<str>,
    /// Why.
    pub reason: Reason,
}

impl Notice {
    /// Names the Service a fault belongs to.
    pub fn new(service: &ServiceName, fault: &Fault) -> Self {
        Self { service: service.clone(), field: fault.field.clone(), reason: fault.reason.clone() }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {}: {}: {}", self.service, self.field, self.reason)
    }
}

/// Why a field cannot be used. The text ends with what to do about it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// Not an IP address.
    NotAnAddress(Box<str>),
    /// Not an address range.
    NotARange(Box<str>),
    /// Loopback, unspecified or multicast.
    SpecialAddress(IpAddr),
    /// Neither IPv4 nor IPv6 (ES-1).
    AddressType(Box<str>),
    /// A slice that says of no Service that it is its (ES-2).
    NoOwner,
    /// An object that has no name.
    NoName,
    /// An endpoint of the family that the slice does not have.
    OtherFamily(IpAddr),
    /// An address of a family in which the Service has no cluster IP (SEL-7).
    NoClusterIp(IpAddr),
    /// A cluster IP whose family is not at its place in `spec.ipFamilies` (SEL-6).
    FamilyNotListed(IpAddr),
    /// A second cluster IP of the same family.
    SecondClusterIp(IpAddr),
    /// Not in 1..=65535.
    PortOutOfRange(i64),
    /// No health check port where type and policy need one (SP-7).
    NoHealthCheckPort,
    /// Neither TCP, UDP nor SCTP.
    UnknownProtocol(Box<str>),
    /// A value that this version does not know; `used` is taken in its place.
    UnknownValue {
        /// What the field says.
        value: Box<str>,
        /// What is used.
        used: &'static str,
    },
    /// No word for an algorithm; the node's default counts.
    UnknownAlgorithm(Box<str>),
    /// Affinity timeout not in 1..=86400 seconds; the default is used.
    TimeoutOutOfRange(i64),
    /// Another port of the Service has the same name and protocol.
    SamePortName(Box<str>),
    /// Another port of the Service has the same number and protocol.
    SamePortNumber(u16, Protocol),
    /// External IPs, which `--external-ips=off` leaves out (LB-6).
    ExternalIpsOff,
    /// More endpoints than a port can have; those with the highest addresses do not serve.
    TooManyEndpoints {
        /// Their family.
        family: Family,
        /// How many do not serve.
        left_out: usize,
    },
    /// More faults of the object were found than are kept.
    More(usize),
}

impl Reason {
    fn problem(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnAddress(text) => write!(f, "{text:?} is not an IP address"),
            Self::NotARange(text) => write!(f, "{text:?} is not an address range"),
            Self::SpecialAddress(addr) => write!(f, "{addr} is a loopback, unspecified or multicast address"),
            Self::AddressType(text) => write!(f, "addressType {text:?} is neither IPv4 nor IPv6"),
            Self::NoOwner => f.write_str("the EndpointSlice has no label kubernetes.io/service-name"),
            Self::NoName => f.write_str("the object has no metadata.name"),
            Self::OtherFamily(addr) => write!(f, "{addr} is not of the addressType of its slice"),
            Self::NoClusterIp(addr) => {
                write!(f, "{addr} is not served, the Service has no {} cluster IP", Family::of(addr))
            }
            Self::FamilyNotListed(addr) => {
                write!(
                    f,
                    "{addr} is not served, spec.ipFamilies does not say {} in its place",
                    Family::of(addr)
                )
            }
            Self::SecondClusterIp(addr) => write!(f, "{addr} is a second {} cluster IP", Family::of(addr)),
            Self::PortOutOfRange(port) => write!(f, "port {port} is not in 1..=65535"),
            Self::NoHealthCheckPort => f.write_str(
                "there is no number, so load balancers cannot ask which nodes have endpoints of this Service",
            ),
            Self::UnknownProtocol(text) => write!(f, "protocol {text:?} is not known"),
            Self::UnknownValue { value, used } => write!(f, "{value:?} is not known, {used} is used"),
            Self::UnknownAlgorithm(text) => {
                write!(f, "{text:?} is no algorithm, the default of this node is used")
            }
            Self::TimeoutOutOfRange(seconds) => write!(f, "{seconds} s is not in 1..=86400, 10800 s is used"),
            Self::SamePortName(name) => {
                write!(f, "an earlier port of the same protocol is called {name:?} too")
            }
            Self::SamePortNumber(port, protocol) => write!(f, "an earlier port uses {port}/{protocol} too"),
            Self::ExternalIpsOff => f.write_str("external IPs are switched off on this node"),
            Self::TooManyEndpoints { family, left_out } => {
                write!(f, "{left_out} of its {family} endpoints do not serve, a port has room for 65521")
            }
            Self::More(left_out) => write!(f, "{left_out} more fields cannot be used"),
        }
    }

    const fn remedy(&self) -> &'static str {
        match self {
            Self::NotAnAddress(_) => "write it like 192.0.2.1 or 2001:db8::1",
            Self::NotARange(_) => "write it like 192.0.2.0/24 or 2001:db8::/32",
            Self::SpecialAddress(_) => "use the unicast address of a host",
            Self::AddressType(_) => "list its endpoints by address, in slices of addressType IPv4 or IPv6",
            Self::NoOwner => "give it one with the name of its Service, if it should serve any",
            Self::NoName => "give it one",
            Self::OtherFamily(_) => "put it into a slice of its own addressType",
            Self::NoClusterIp(_) => "add the family to spec.ipFamilies",
            Self::FamilyNotListed(_) => "list the families of spec.clusterIPs there, in their order",
            Self::SecondClusterIp(_) => "keep one for each family",
            Self::PortOutOfRange(_) | Self::TimeoutOutOfRange(_) => "correct the number",
            Self::NoHealthCheckPort => {
                "write a free port of the nodes, or let an API server choose one when it is created"
            }
            Self::UnknownProtocol(_) => "use TCP, UDP or SCTP",
            Self::UnknownValue { .. } => "correct it, or update the agent",
            Self::UnknownAlgorithm(_) => "write random, maglev or round-robin",
            Self::SamePortName(_) => "give each port its own name",
            Self::SamePortNumber(..) => "give each port its own number",
            Self::ExternalIpsOff => "use a LoadBalancer address, or start the agent with --external-ips=on",
            Self::TooManyEndpoints { .. } => "spread the pods over several Services",
            Self::More(_) => "correct the ones that are named first",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem(f)?;
        write!(f, "; {}", self.remedy())
    }
}
