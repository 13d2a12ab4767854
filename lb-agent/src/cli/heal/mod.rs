//! `lb-agent heal-sockets`: connected UDP sockets that were refused get another chance.
//!
//! A UDP socket that connects to a Service without endpoints is connected to an address that refuses, and no hook sees what
//! it sends. When the Service has endpoints, such a socket is freed: it hears `ECONNABORTED` once, and can connect again.
//! Only a process that can enter the namespaces of pods can do that, so it is a process of its own that the agent starts.

mod diag;
mod memory;

use std::{collections::BTreeMap, fmt::Write as _, io, os::fd::AsFd as _};

use anyhow::{Context as _, bail};
use lb_common::{
    abi::{Addr, BackendId, Frontend, FrontendKey, L4Addr, Proto, Service, SockUdp, UdpPeer, maps},
    datapath::sock::{REFUSING_UDP_PORT, uses_local_run},
};
use serde::Serialize;

use super::{
    HealArgs,
    namespaces::{self, Namespace},
    pinned::Pinned,
    print,
};
use crate::{
    maps::{Array, Table as _, read},
    model::Family,
};
use diag::{Connected, Diag};
use memory::Holders;

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Healed {
    /// Namespaces that were looked into.
    namespaces: usize,
    /// Sockets that were connected to the refusing address.
    refused: usize,
    /// Those of them that are free now.
    freed: usize,
    /// Namespaces that could not be looked into, and why.
    failures: Vec<String>,
}

/// Frees every refused socket whose Service has endpoints now.
pub(super) fn run(args: &HealArgs) -> anyhow::Result<()> {
    let pinned = Pinned::open(&args.pins.pin_dir)?;
    let healed = heal(&pinned)?;
    if let [first, ..] = healed.failures.as_slice()
        && healed.failures.len() == healed.namespaces
    {
        bail!("no network namespace could be looked into: {first}");
    }
    print(&args.output, &healed, |healed| {
        let mut text = format!(
            "{} refused sockets in {} network namespaces, {} freed",
            healed.refused, healed.namespaces, healed.freed
        );
        for failure in &healed.failures {
            // Writing to a string cannot fail.
            let _infallible = write!(text, "\n{failure}");
        }
        text
    })
}

fn heal(pinned: &Pinned) -> anyhow::Result<Healed> {
    let storage = pinned.descriptor(maps::SOCK_UDP)?;
    let mut healed = Healed::default();
    let mut candidates: Vec<(Namespace, Vec<Connected>)> = Vec::new();
    for namespace in namespaces::all() {
        healed.namespaces += 1;
        match namespaces::inside(&namespace.file, candidates_here) {
            Ok(sockets) if sockets.is_empty() => {}
            Ok(sockets) => candidates.push((namespace, sockets)),
            Err(error) => healed.failures.push(failure(&namespace, &error)),
        }
    }
    if candidates.is_empty() {
        return Ok(healed);
    }
    let served = Served::read(pinned)?;
    let sockets = candidates.iter().flat_map(|(_, sockets)| sockets);
    let holders = Holders::of(&sockets.map(|socket| socket.inode).collect());
    for (namespace, sockets) in candidates {
        let mut ready = Vec::new();
        for socket in &sockets {
            match holders.remembered(storage.fd().as_fd(), socket.inode) {
                Ok(Some(sock)) => {
                    let Some(to) = refused_to(&sock, socket) else { continue };
                    healed.refused += 1;
                    if served.may_connect(to) {
                        ready.push(socket);
                    }
                }
                Ok(None) => {}
                Err(error) => healed.failures.push(failure(&namespace, &error)),
            }
        }
        match namespaces::inside(&namespace.file, || free(&ready)) {
            Ok(freed) => healed.freed += freed,
            Err(error) => healed.failures.push(failure(&namespace, &error)),
        }
    }
    Ok(healed)
}

/// The sockets of the present namespace that are connected to where refused ones are.
fn candidates_here() -> io::Result<Vec<Connected>> {
    let diag = Diag::open()?;
    let mut found = Vec::new();
    for family in Family::BOTH {
        let refusing = |peer: L4Addr| peer.port == REFUSING_UDP_PORT && peer.addr == peer.addr.loopback();
        found.extend(diag.connected(family)?.into_iter().filter(|socket| refusing(socket.peer)));
    }
    Ok(found)
}

/// Where a socket wanted to that a Service without endpoints has refused; nothing for all others.
fn refused_to(sock: &SockUdp, socket: &Connected) -> Option<L4Addr> {
    sock.behind(socket.peer).filter(|pair| pair.backend == BackendId::NONE).map(UdpPeer::frontend)
}

/// Frees sockets of the present namespace; returns how many.
fn free(sockets: &[&Connected]) -> io::Result<usize> {
    let diag = Diag::open()?;
    let mut freed = 0;
    for socket in sockets {
        freed += usize::from(diag.free(socket)?);
    }
    Ok(freed)
}

fn failure(namespace: &Namespace, error: &io::Error) -> String {
    let path = namespace.paths.first().map_or_else(String::new, |path| path.display().to_string());
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM) => ": it needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_SYS_PTRACE",
        Some(libc::ENOENT) => ": the kernel lacks CONFIG_INET_UDP_DIAG (module udp_diag)",
        Some(libc::EOPNOTSUPP) => ": the kernel lacks CONFIG_INET_DIAG_DESTROY",
        _ => "",
    };
    format!("{path}: {error}{remedy}")
}

/// What decides whether a socket that was refused would be refused again.
struct Served {
    frontends: BTreeMap<FrontendKey, Frontend>,
    services: Box<dyn Array>,
}

impl Served {
    fn read(pinned: &Pinned) -> anyhow::Result<Self> {
        let frontends = pinned.table::<FrontendKey, Frontend>(maps::FRONTENDS)?.dump();
        Ok(Self {
            frontends: frontends.context("cannot read lb_frontends")?.into_iter().collect(),
            services: Box::new(pinned.array(maps::SERVICES)?),
        })
    }

    /// Whether a connect() to a UDP frontend would not be refused now. One that is gone is an address like any other.
    fn may_connect(&self, to: L4Addr) -> bool {
        let any: Addr = to.addr.any();
        let key = |addr| FrontendKey::new(L4Addr { addr, port: to.port }, Proto::UDP);
        let Some(frontend) = self.frontends.get(&key(to.addr)).or_else(|| self.frontends.get(&key(any)))
        else {
            return true;
        };
        let service: Service = read(&*self.services, frontend.service.index);
        let is_local = uses_local_run(frontend.kind, service.flags);
        let run = if is_local { service.local } else { service.cluster };
        run.count != 0
    }
}
