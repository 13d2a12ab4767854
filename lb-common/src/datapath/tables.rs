//! What the data path may ask of the world.

use crate::abi::{
    Addr, Address, Affinity, AffinityKey, Backend, BackendId, Config, Frontend, FrontendKey, Netns, Reason,
    Run, Service, ServiceFlags, ServiceId, Slot,
};

/// Typed look-ups. Values are copies: the element behind a look-up can be another's a moment later.
pub trait Tables {
    /// Who accepts traffic at `key`. May return another key's value, see [`FrontendKey::tag`].
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// What an address is to this node.
    fn address(&self, addr: &Addr) -> Option<Address>;
    /// Who serves connections of Cluster policy. Nothing if the id is outside the array.
    fn cluster_run(&self, service: ServiceId) -> Option<Run>;
    /// Who serves connections of Local policy.
    fn local_run(&self, service: ServiceId) -> Option<Run>;
    /// Policy bits and affinity, the word that holds both: see [`Service`].
    fn policy(&self, service: ServiceId) -> Option<(ServiceFlags, u32)>;
    /// [`Service::generation`].
    fn service_generation(&self, service: ServiceId) -> Option<u32>;
    /// A slot of a run that was loaded before.
    fn slot(&self, slot: u32) -> Option<Slot>;
    /// What is known of a backend id.
    fn backend(&self, id: BackendId) -> Option<Backend>;
    /// What is special about a network namespace.
    fn netns(&self, cookie: u64) -> Option<Netns>;
    /// Copies where a client went last; false if that is not known. May be another key's entry, see [`Affinity::is_of`].
    fn affinity(&self, key: &AffinityKey, into: &mut Affinity) -> bool;
    /// Notes where a client goes. Without `replaces` only if there is no entry; false if nothing was noted.
    fn put_affinity(&self, key: &AffinityKey, entry: &Affinity, replaces: bool) -> bool;
    /// Notes when a client has connected, if it has an entry.
    fn touch_affinity(&self, key: &AffinityKey, now_ms: u64);
    /// Milliseconds of the monotonic clock.
    fn now_ms(&self) -> u64;
    /// The node's switches.
    fn config(&self) -> Config;
    /// 32 uniformly random bits.
    fn random(&self) -> u32;
    /// The turn of a connection to this service, as [`Turn`](crate::abi::Turn) says.
    fn turn(&self, service: ServiceId) -> u32;
    /// Counts one event.
    fn count(&self, reason: Reason);
}

const _: () = assert!(Service::WORDS == 4, "Tables has an accessor per word that hooks read");

/// The frontend at `key`, if the value belongs to that key.
///
/// A foreign value is met only while the agent creates or deletes *another* frontend in the same bucket, so one
/// repetition finds the right one; if it does not, the key counts as absent.
#[inline(always)]
pub fn owned_frontend<T: Tables>(tables: &T, key: &FrontendKey) -> Option<Frontend> {
    let tag = key.tag();
    let first = tables.frontend(key)?;
    if first.tag == tag {
        return Some(first);
    }
    tables.count(Reason::ForeignFrontend);
    tables.frontend(key).filter(|second| second.tag == tag)
}
