//! The self-test of a device before [`lb_xdp`](super::Device::EXPRESS) is let loose on it.

/// Value of `lb_probe`: the question that `lb_xdp_test` puts to a neighbour of one device.
///
/// The kernel asks for the neighbour's link-layer address, as it often does; the program sends this question in the place of the answer
/// that comes in. Its own answer, which tells itself from the first one, proves that frames come in whole and that those that are sent by
/// XDP arrive.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// [`Probe::ARMED`] and what follows; 0: nothing is asked.
    pub state: u32,
    /// The device.
    pub ifindex: u32,
    /// The question: [`Probe::ARP`] or [`Probe::NEIGHBOUR`] bytes, and zeros.
    pub frame: [u8; 80],
}

impl Probe {
    /// Nothing is asked.
    pub const IDLE: Self = Self { state: 0, ifindex: 0, frame: [0; 80] };
    /// The question goes out in the place of the next answer of that neighbour.
    pub const ARMED: u32 = 1;
    /// It has gone out.
    pub const SENT: u32 = 2;
    /// It was answered.
    pub const ANSWERED: u32 = 3;
    /// Bytes of an Ethernet frame with an ARP request (RFC 826) for which nobody's address is the sender's: its answer says so, too
    /// (RFC 5227 2.1.1).
    pub const ARP: usize = 42;
    /// Bytes of an Ethernet frame with a neighbour solicitation (RFC 4861 4.3) from no address: its answer goes to all nodes
    /// (RFC 4861 7.2.4).
    pub const NEIGHBOUR: usize = 78;
}

const _: () = assert!(size_of::<Probe>() == 88, "no implicit padding");
