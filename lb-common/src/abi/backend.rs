//! Where traffic goes: slots, and what is known of each backend.

use super::{Addr, L4Addr, Words, join16, join32, split16, split32};

/// Index into `lb_backends`. It belongs to one (service port, family, address, port) until a grace period after the
/// endpoint left.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendId {
    /// 1 .. capacity of `lb_backends`; 0 is nobody.
    pub index: u32,
}

impl BackendId {
    /// Nobody.
    pub const NONE: Self = Self { index: 0 };
}

/// Value of `lb_slots`: everything that a new connection needs, in half a cache line.
///
/// A slot is written only while no run contains it, and is read only through a run.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot {
    /// Address of the backend, network order.
    pub addr: Addr,
    /// Port of the backend, host order.
    pub port: u16,
    /// Zero.
    pub flags: u16,
    /// Who it is in `lb_backends`.
    pub backend: BackendId,
    /// [`Backend::generation`] of that id when the slot was written.
    pub generation: u32,
    /// Zero.
    pub pad: u32,
}

impl Slot {
    /// Words of one value.
    pub const WORDS: usize = 4;
    /// Nobody's.
    pub const FREE: Self =
        Self { addr: Addr::ANY_V6, port: 0, flags: 0, backend: BackendId::NONE, generation: 0, pad: 0 };

    /// Address and port of the backend.
    pub const fn at(&self) -> L4Addr {
        L4Addr { addr: self.addr, port: self.port }
    }
}

impl Words<4> for Slot {
    fn to_words(&self) -> [u64; 4] {
        let [a, b, c, d] = self.addr.to_net_words();
        [
            join32(a, b),
            join32(c, d),
            join32(join16(self.port, self.flags), self.backend.index),
            join32(self.generation, self.pad),
        ]
    }

    fn from_words([first, second, third, fourth]: [u64; 4]) -> Self {
        let ((a, b), (c, d)) = (split32(first), split32(second));
        let (ports, backend) = split32(third);
        let (port, flags) = split16(ports);
        let (generation, pad) = split32(fourth);
        Self {
            addr: Addr::from_net_words([a, b, c, d]),
            port,
            flags,
            backend: BackendId { index: backend },
            generation,
            pad,
        }
    }
}

const _: () = assert!(size_of::<Slot>() == Slot::WORDS * 8, "a Slot is its words");

/// Life of a backend id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum BackendState {
    /// Nobody's, or gone: flows that remember it choose anew.
    Free = 0,
    /// Serves new and existing flows.
    Active = 1,
    /// Serves existing flows; new ones only while its run lists it. Of a UDP port, ready ones too that no run lists.
    Terminating = 2,
}

/// Value of `lb_backends`: one word, so that generation and state are never seen apart.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Backend {
    /// Raised whenever the id is freed: a remembered (id, generation) never means another endpoint.
    pub generation: u32,
    /// A [`BackendState`].
    pub state: u8,
    /// Which runs list it: [`Backend::IN_CLUSTER`], [`Backend::IN_LOCAL`].
    pub runs: u8,
    /// Zero.
    pub pad: u16,
}

impl Backend {
    /// Bit of [`Backend::runs`].
    pub const IN_CLUSTER: u8 = 1;
    /// Bit of [`Backend::runs`].
    pub const IN_LOCAL: u8 = 2;
    /// Bit of [`Backend::runs`]: its endpoint is on this node, so whatever it answers passes this node.
    pub const HERE: u8 = 4;

    /// Whether a flow that remembers `generation` may still send to this backend.
    pub const fn serves(self, generation: u32) -> bool {
        self.generation == generation && self.state != BackendState::Free as u8
    }
}

impl Words<1> for Backend {
    fn to_words(&self) -> [u64; 1] {
        [join32(self.generation, join16(u16::from_ne_bytes([self.state, self.runs]), self.pad))]
    }

    fn from_words([word]: [u64; 1]) -> Self {
        let (generation, rest) = split32(word);
        let (states, pad) = split16(rest);
        let [state, runs] = states.to_ne_bytes();
        Self { generation, state, runs, pad }
    }
}

const _: () = assert!(size_of::<Backend>() == 8, "a Backend is one word");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slots_and_backends_survive_their_words(slot: [u64; 4], backend: u64) {
            prop_assert_eq!(Slot::from_words(slot).to_words(), slot);
            prop_assert_eq!(Backend::from_words([backend]).to_words(), [backend]);
        }
    }

    #[test]
    fn a_freed_id_serves_nobody_who_remembers_it() {
        let active = Backend { generation: 4, state: BackendState::Active as u8, runs: 1, pad: 0 };
        assert!(active.serves(4));
        assert!(!active.serves(3), "an older generation was another endpoint");
        let terminating = Backend { state: BackendState::Terminating as u8, ..active };
        assert!(terminating.serves(4), "existing flows stay while it terminates");
        let free = Backend { state: BackendState::Free as u8, ..active };
        assert!(!free.serves(4));
    }
}
