//! `lb-agent heal-sockets`: connected UDP sockets that lead nowhere get another chance.
//!
//! No hook sees what a connected UDP socket sends. One that connects to a Service without endpoints is connected to an
//! address that refuses, or, if the endpoints are on other nodes only, to the Service's own; one whose backend is gone goes on
//! sending to an address that may be another pod's by now (CT-4). When the Service has endpoints, or the backend is gone, such a
//! socket is freed: it hears `ECONNABORTED` once, and can connect again. Only a process that can enter the namespaces of pods can do that, so it is a process of its own that the agent starts.

mod diag;
mod memory;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::{Context as _, bail};
use lb_common::{
    abi::{
        Addr, Address, Backend, BackendId, Frontend, FrontendKey, L4Addr, Proto, Service, SockUdp, UdpPeer,
        maps,
    },
    datapath::sock::{REFUSING_UDP_PORT, uses_local_run},
};

use super::{
    HealArgs,
    namespaces::{self, Namespace},
    pinned::Pinned,
    print,
};
use crate::{
    healer::Healed,
    maps::{Array, Table as _, read},
    model::Family,
    reconcile::{draining_slots, slots_of},
};
use diag::{Connected, Diag};
use memory::{Holders, Memory};

/// Frees every socket that leads nowhere and need not.
pub(super) fn run(args: &HealArgs) -> anyhow::Result<()> {
    let pinned = Pinned::open(&args.pins.pin_dir)?;
    let all = |of: &[SocketAddr]| of.iter().copied().map(L4Addr::from).collect();
    let healed = heal(&pinned, &Suspects { gone: all(&args.gone), left: all(&args.left) })?;
    print(&args.output, &healed, |healed| {
        let mut text = format!(
            "{} refused sockets and {} of backends that are gone in {} network namespaces, {} freed",
            healed.refused, healed.stale, healed.namespaces, healed.freed
        );
        for (why, namespaces) in &healed.failures {
            // Writing to a string cannot fail.
            let _infallible = write!(text, "\n{}: {why}", namespaces.join(", "));
        }
        text
    })?;
    if let Some(why) = healed.problem() {
        bail!("sockets that lead nowhere may have been left as they are: {why}");
    }
    Ok(())
}

/// Why namespaces were not looked into that nobody could open.
const NO_NAMESPACES: &str =
    "processes do not show which network namespaces they are in; it needs CAP_SYS_PTRACE";

/// How often a socket's holder is looked for: it may hand the socket to another process meanwhile.
const ATTEMPTS: usize = 2;

/// Addresses of backends that sockets may have to be freed from.
#[derive(Default)]
struct Suspects {
    /// Nobody serves there any more.
    gone: HashSet<L4Addr>,
    /// Some Service had them.
    left: HashSet<L4Addr>,
}

impl Suspects {
    /// Nobody in particular: any backend may have gone.
    fn are_all(&self) -> bool {
        self.gone.is_empty() && self.left.is_empty()
    }

    fn has(&self, at: L4Addr) -> bool {
        self.gone.contains(&at) || self.left.contains(&at)
    }
}

fn heal(pinned: &Pinned, suspects: &Suspects) -> anyhow::Result<Healed> {
    let storage = pinned.descriptor(maps::SOCK_UDP)?;
    let served = Served::read(pinned)?;
    let seems_lost = |peer: L4Addr| is_refusing(peer) || suspects.has(peer) || served.has(peer);
    let wanted = |peer: L4Addr| suspects.are_all() || seems_lost(peer);
    let mut healed = Healed::default();
    let mut candidates: Vec<(Namespace, Vec<Connected>)> = Vec::new();
    let (all, is_partial) = namespaces::seen();
    let may_look = may_look_into_processes(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    // With the capability those stay that nobody here can look into, as in a container that sees its host's first process.
    if is_partial && !may_look {
        healed.failures.insert(NO_NAMESPACES.to_owned(), vec!["/proc".to_owned()]);
    }
    for namespace in all {
        healed.namespaces += 1;
        let sockets = candidates_in(&namespace, &wanted, &mut healed);
        if !sockets.is_empty() {
            candidates.push((namespace, sockets));
        }
    }
    if candidates.is_empty() {
        return Ok(healed);
    }
    for attempt in 1..=ATTEMPTS {
        let sockets = candidates.iter().flat_map(|(_, sockets)| sockets);
        let holders = Holders::of(&sockets.map(|socket| socket.inode).collect());
        let mut missed = Vec::new();
        for (namespace, sockets) in candidates {
            let look = Look { storage: storage.fd().as_fd(), holders: &holders, served: &served, suspects };
            let without_holder = look.heal(&namespace, sockets, &mut healed);
            if without_holder.is_empty() {
                continue;
            }
            // Those that have gone meanwhile are nobody's loss.
            let mut left = candidates_in(&namespace, &wanted, &mut healed);
            left.retain(|socket| without_holder.contains(&socket.inode));
            if !left.is_empty() && attempt < ATTEMPTS {
                missed.push((namespace, left));
            } else if left.iter().any(|socket| seems_lost(socket.peer)) {
                add_failure(&mut healed, &namespace, no_holder(holders.is_partial, may_look).to_owned());
            } else {
                // Anybody's: most sockets of processes that nobody sees here have never been ours.
                healed.unseen += left.len();
            }
        }
        candidates = missed;
    }
    Ok(healed)
}

/// What is known when sockets are looked at.
struct Look<'a> {
    storage: BorrowedFd<'a>,
    holders: &'a Holders,
    served: &'a Served,
    suspects: &'a Suspects,
}

impl Look<'_> {
    /// Frees those of a namespace's sockets that may connect now. Returns the ones whose holder was not found.
    fn heal(&self, namespace: &Namespace, sockets: Vec<Connected>, healed: &mut Healed) -> HashSet<u32> {
        let mut without_holder = HashSet::new();
        let mut ready = Vec::new();
        for socket in sockets {
            match self.holders.remembered(self.storage, socket.inode) {
                Ok(Memory::Of(sock)) => match self.state(&sock, &socket) {
                    State::Fine => {}
                    State::Refused { is_over } => {
                        healed.refused += 1;
                        if is_over {
                            ready.push(socket);
                        }
                    }
                    State::Stale => {
                        healed.stale += 1;
                        ready.push(socket);
                    }
                },
                Ok(Memory::Nothing) => {}
                Ok(Memory::NoHolder) => {
                    without_holder.insert(socket.inode);
                }
                Err((step, error)) => add_failure(healed, namespace, step.failed(&error)),
            }
        }
        if !ready.is_empty() {
            match namespaces::inside(&namespace.file, || Ok(free(&ready))) {
                Ok((freed, errors)) => {
                    healed.freed += freed;
                    for error in errors {
                        add_failure(healed, namespace, Step::Free.failed(&error));
                    }
                }
                Err(error) => add_failure(healed, namespace, Step::Enter.failed(&error)),
            }
        }
        without_holder
    }

    /// What became of a socket. Nothing if it has never been ours.
    fn state(&self, sock: &SockUdp, socket: &Connected) -> State {
        let Some(pair) = sock.behind(socket.peer) else { return State::Fine };
        if pair.backend == BackendId::NONE {
            let now = self.served.meets(pair.frontend());
            let was = if is_refusing(socket.peer) { Meets::Nobody } else { Meets::OthersElsewhere };
            return State::Refused { is_over: now != was };
        }
        // An id that is another one's by now may be so because all maps were made anew.
        if self.served.is_alive(pair) || self.served.serves(pair) == Some(true) {
            return State::Fine;
        }
        // Of a frontend that is gone nobody can say so (NE-3), unless the endpoint is known to be gone.
        let is_gone = self.suspects.gone.contains(&socket.peer) || self.served.serves(pair).is_some();
        if is_gone { State::Stale } else { State::Fine }
    }
}

/// What became of a socket that was translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It leads to a backend that serves.
    Fine,
    /// It was refused, or sent to nobody; a connect() would not be now if `is_over`.
    Refused {
        /// See above.
        is_over: bool,
    },
    /// Its backend is gone.
    Stale,
}

/// What a connect() to a frontend meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meets {
    /// It is refused.
    Nobody,
    /// It is sent to nobody.
    OthersElsewhere,
    /// A backend, or whoever has that address outside of Services.
    Somebody,
}

/// Whether refused sockets are connected to this address.
fn is_refusing(peer: L4Addr) -> bool {
    peer.port == REFUSING_UDP_PORT && peer.addr == peer.addr.loopback()
}

/// The sockets of a namespace that are connected to `wanted` addresses.
fn candidates_in(
    namespace: &Namespace,
    wanted: &dyn Fn(L4Addr) -> bool,
    healed: &mut Healed,
) -> Vec<Connected> {
    let (step, error) = match namespaces::inside(&namespace.file, || Ok(connected_here())) {
        Ok(Ok(mut sockets)) => {
            sockets.retain(|socket| wanted(socket.peer));
            return sockets;
        }
        Ok(Err(error)) => (Step::List, error),
        // A file under a name whose namespace is gone, as a crash leaves it.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Vec::new(),
        Err(error) => (Step::Enter, error),
    };
    add_failure(healed, namespace, step.failed(&error));
    Vec::new()
}

/// The connected UDP sockets of the present namespace.
fn connected_here() -> io::Result<Vec<Connected>> {
    let diag = Diag::open()?;
    let mut found = Vec::new();
    for family in Family::BOTH {
        found.append(&mut diag.connected(family)?);
    }
    Ok(found)
}

/// Frees sockets of the present namespace; returns how many, and what went wrong with the others.
fn free(sockets: &[Connected]) -> (usize, Vec<io::Error>) {
    let diag = match Diag::open() {
        Ok(diag) => diag,
        Err(error) => return (0, vec![error]),
    };
    let mut freed = 0;
    let mut errors = Vec::new();
    for socket in sockets {
        match diag.free(socket) {
            Ok(is_freed) => freed += usize::from(is_freed),
            Err(error) => errors.push(error),
        }
    }
    (freed, errors)
}

/// What is done to a socket or its namespace, and can be refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Entering the namespace.
    Enter,
    /// Listing its sockets.
    List,
    /// Copying a socket from the process that has it.
    Copy,
    /// Reading what `lb_sock_udp` holds for it.
    Read,
    /// Freeing it.
    Free,
}

impl Step {
    /// What failed, why, and what it takes.
    fn failed(self, error: &io::Error) -> String {
        let what = match self {
            Self::Enter => "the network namespace cannot be entered",
            Self::List => "connected UDP sockets cannot be listed",
            Self::Copy => "pidfd_getfd is refused, so it is unknown which sockets were refused",
            Self::Read => "lb_sock_udp cannot be read",
            Self::Free => "refused sockets cannot be freed",
        };
        let remedy = match (self, error.raw_os_error()) {
            (Self::Enter, Some(libc::EPERM)) => "; it needs CAP_SYS_ADMIN",
            (Self::List, Some(libc::ENOENT)) => "; the kernel lacks CONFIG_INET_UDP_DIAG (module udp_diag)",
            (Self::Copy, Some(libc::EPERM)) => {
                "; it needs CAP_SYS_PTRACE, and a seccomp profile and a kernel.yama.ptrace_scope that allow it"
            }
            (Self::Copy, Some(libc::ENOSYS)) => "; the seccomp profile does not know it",
            (Self::Read, Some(libc::EPERM)) => "; it needs CAP_BPF",
            (Self::Free, Some(libc::EPERM)) => "; it needs CAP_NET_ADMIN",
            (Self::Free, Some(libc::EOPNOTSUPP)) => "; the kernel lacks CONFIG_INET_DIAG_DESTROY",
            _ => "",
        };
        format!("{what}: {error}{remedy}")
    }
}

/// Why the holder of a socket that exists was not found.
const fn no_holder(is_partial: bool, may_look: bool) -> &'static str {
    match (is_partial, may_look) {
        (true, false) => {
            "processes do not show which sockets they have, so it is unknown which ones were refused; it needs CAP_SYS_PTRACE"
        }
        (false, _) => {
            "no process in /proc has a socket that seems to have been refused; it needs the host's /proc (hostPID)"
        }
        // A security module, or a process of a user namespace above.
        (true, true) => {
            "no process that shows its sockets has one that seems to have been refused; it needs the host's /proc (hostPID), and \
             to be allowed to read all processes (AppArmor)"
        }
    }
}

/// CAP_SYS_PTRACE (include/uapi/linux/capability.h)
const SYS_PTRACE: u32 = 19;

/// Whether a `/proc/self/status` (proc(5)) has CAP_SYS_PTRACE.
fn may_look_into_processes(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> SYS_PTRACE & 1 == 1)
}

/// Once for each namespace.
fn add_failure(healed: &mut Healed, namespace: &Namespace, why: String) {
    let path = namespace.paths.first().map_or_else(String::new, |path| path.display().to_string());
    let namespaces = healed.failures.entry(why).or_default();
    if !namespaces.contains(&path) {
        namespaces.push(path);
    }
}

/// What decides whether a socket that was refused would be refused again.
struct Served {
    frontends: BTreeMap<FrontendKey, Frontend>,
    addresses: BTreeMap<Addr, Address>,
    services: Box<dyn Array>,
    slots: Box<dyn Array>,
    backends: Box<dyn Array>,
}

impl Served {
    fn read(pinned: &Pinned) -> anyhow::Result<Self> {
        let frontends = pinned.table::<FrontendKey, Frontend>(maps::FRONTENDS)?.dump();
        let addresses = pinned.table::<Addr, Address>(maps::ADDRESSES)?.dump();
        Ok(Self {
            frontends: frontends.context("cannot read lb_frontends")?.into_iter().collect(),
            addresses: addresses.context("cannot read lb_addresses")?.into_iter().collect(),
            services: Box::new(pinned.array(maps::SERVICES)?),
            slots: Box::new(pinned.array(maps::SLOTS)?),
            backends: Box::new(pinned.array(maps::BACKENDS)?),
        })
    }

    /// Whether this is a UDP frontend by its own address.
    fn has(&self, at: L4Addr) -> bool {
        self.frontends.contains_key(&FrontendKey::new(at, Proto::UDP))
    }

    /// Whether the backend of a pair still serves what it has.
    fn is_alive(&self, pair: &UdpPeer) -> bool {
        read::<1, Backend>(&*self.backends, pair.backend.index).serves(pair.generation)
    }

    /// Whose UDP frontend this is.
    fn frontend(&self, at: L4Addr) -> Option<&Frontend> {
        let key = |addr| FrontendKey::new(L4Addr { addr, port: at.port }, Proto::UDP);
        // NodePorts are those of this node's addresses.
        let is_own = || self.addresses.contains_key(&at.addr);
        let node_port = || is_own().then(|| self.frontends.get(&key(at.addr.any()))).flatten();
        self.frontends.get(&key(at.addr)).or_else(node_port)
    }

    /// Whether the frontend of a pair has its backend's address, by whatever id; nothing if that frontend is gone.
    fn serves(&self, pair: &UdpPeer) -> Option<bool> {
        let frontend = self.frontend(pair.frontend())?;
        let service: Service = read(&*self.services, frontend.service.index);
        let mut slots = [service.cluster, service.local]
            .into_iter()
            .flat_map(|run| slots_of(&*self.slots, run))
            .chain(draining_slots(&*self.slots, service.draining));
        Some(slots.any(|slot| slot.at() == pair.target()))
    }

    /// What a connect() to a UDP frontend meets now. One that is gone is an address like any other.
    fn meets(&self, to: L4Addr) -> Meets {
        let Some(frontend) = self.frontend(to) else {
            let is_cluster_ip = self.frontends.contains_key(&FrontendKey::other_ports(to.addr));
            return if is_cluster_ip { Meets::Nobody } else { Meets::Somebody };
        };
        let service: Service = read(&*self.services, frontend.service.index);
        let is_local = uses_local_run(frontend.kind, service.flags);
        let run = if is_local { service.local } else { service.cluster };
        match run.count {
            0 if run.is_elsewhere() => Meets::OthersElsewhere,
            0 => Meets::Nobody,
            _ => Meets::Somebody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_holder_names_what_hides_it() {
        assert!(no_holder(true, false).ends_with("it needs CAP_SYS_PTRACE"));
        for may_look in [false, true] {
            assert!(no_holder(false, may_look).ends_with("(hostPID)"));
        }
        assert!(no_holder(true, true).contains("AppArmor"));
        assert!(may_look_into_processes("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_look_into_processes("Name:\tx\nCapEff:\t000001fffff7ffff\n"));
        assert!(!may_look_into_processes(""));
    }

    #[test]
    fn a_failure_names_what_is_missing() {
        for (step, errno, what, remedy) in [
            (Step::Enter, libc::EPERM, "cannot be entered", "CAP_SYS_ADMIN"),
            (Step::List, libc::ENOENT, "cannot be listed", "CONFIG_INET_UDP_DIAG"),
            (Step::Copy, libc::EPERM, "pidfd_getfd is refused", "CAP_SYS_PTRACE"),
            (Step::Copy, libc::ENOSYS, "pidfd_getfd is refused", "seccomp"),
            (Step::Read, libc::EPERM, "lb_sock_udp", "CAP_BPF"),
            (Step::Free, libc::EPERM, "cannot be freed", "CAP_NET_ADMIN"),
            (Step::Free, libc::EOPNOTSUPP, "cannot be freed", "CONFIG_INET_DIAG_DESTROY"),
            (Step::Free, libc::ENOMEM, "cannot be freed", "memory"),
        ] {
            let said = step.failed(&io::Error::from_raw_os_error(errno));
            assert!(said.contains(what) && said.contains(remedy), "{said}");
        }
    }
}
