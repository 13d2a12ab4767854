//! Pieces of datagrams: a later one goes where the first one went, whose ports it belongs to.
//!
//! Only those of datagrams that were translated are remembered. A later piece that comes before the first one, or whose first one was
//! evicted, is left alone; whoever puts the pieces together misses it and gives up, as after any loss.

use super::{Flows, Work};
use crate::abi::{FlowAddr, FragmentKey, FragmentPorts};

#[inline(always)]
fn key<A: FlowAddr>(work: &Work<A>, id: u32) -> FragmentKey {
    let key = &work.packet.key;
    FragmentKey { src: key.src.widen(), dst: key.dst.widen(), id, proto: key.proto, pad: [0; 3] }
}

/// Notes the ports of a first piece. False if they cannot be written; then the others are lost, see above.
#[inline(always)]
pub fn first<A: FlowAddr, W: Flows<A>>(world: &W, work: &Work<A>, id: u32) -> bool {
    let key = key(work, id);
    world.put_ports(&key, FragmentPorts::new(&key, work.packet.key.sport, work.packet.key.dport))
}

/// Gives a later piece its ports. False if they are not known.
#[inline(always)]
pub fn later<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>, id: u32) -> bool {
    let key = key(work, id);
    let Some(ports) = world.ports(&key).filter(|ports| ports.is_of(&key)) else { return false };
    (work.packet.key.sport, work.packet.key.dport) = (ports.sport, ports.dport);
    true
}
