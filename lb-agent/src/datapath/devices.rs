//! The addresses of this node and their interfaces, and their changes, from rtnetlink in the agent's own network
//! namespace.

use std::{collections::BTreeMap, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection, packet_route::address::AddressAttribute};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::index_to_name, socket_with};
use tokio::{sync::mpsc::Sender, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::addresses::{OwnAddress, OwnAddresses};
use crate::model::Name;

/// Changes come in bursts (an interface that goes up); they are read once per burst.
const SETTLE: Duration = Duration::from_millis(50);
/// Between two attempts after netlink has failed.
const RETRY: Duration = Duration::from_secs(5);

/// Sends the node's addresses once, and again after every change, until `stop`.
pub async fn run<M: Send + 'static>(
    messages: Sender<M>,
    wrap: impl Fn(OwnAddresses) -> M,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        if let Err(error) = follow(&messages, &wrap, &stop).await {
            warn!(%error, retry = ?RETRY, "cannot read this node's addresses, NodePorts keep the last known ones");
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(RETRY) => {}
            }
        }
    }
}

async fn follow<M>(
    messages: &Sender<M>,
    wrap: &impl Fn(OwnAddresses) -> M,
    stop: &CancellationToken,
) -> Result<(), rtnetlink::Error> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut changes) = new_multicast_connection(&groups)
        .map_err(|error| rtnetlink::Error::NamespaceError(error.to_string()))?;
    let connection = tokio::spawn(connection);
    let mut sent = None;
    let result = loop {
        let addresses = match read(&handle).await {
            Ok(addresses) => addresses,
            Err(error) => break Err(error),
        };
        if sent.as_ref() != Some(&addresses) {
            sent = Some(addresses.clone());
            if messages.send(wrap(addresses)).await.is_err() {
                break Ok(());
            }
        }
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            change = changes.next() => {
                if change.is_none() {
                    break Err(rtnetlink::Error::RequestFailed);
                }
            }
        }
        sleep(SETTLE).await;
        drain(&mut changes);
    };
    connection.abort();
    result
}

/// Drops what has come already, which is part of the next reading. A stream that has ended yields its end again and again.
fn drain(changes: &mut (impl Stream + Unpin)) {
    while let Some(Some(_)) = changes.next().now_or_never() {}
}

/// All addresses of all interfaces.
async fn read(handle: &Handle) -> Result<OwnAddresses, rtnetlink::Error> {
    let mut found = Vec::new();
    let mut interfaces = handle.address().get().execute();
    while let Some(message) = interfaces.try_next().await? {
        // IFA_LOCAL is the own address, IFA_ADDRESS the peer's on point-to-point links (rtnetlink(7)).
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(addr) => Some(*addr),
            _ => None,
        });
        let any = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(addr) => Some(*addr),
            _ => None,
        });
        found.extend(local.or(any).map(|addr| (addr, message.header.index)));
    }
    let mut names = BTreeMap::new();
    let named = found.into_iter().filter_map(|(addr, index)| {
        let name = names.entry(index).or_insert_with(|| interface(index)).clone()?;
        Some(OwnAddress { addr: addr.to_canonical(), interface: name })
    });
    Ok(named.collect())
}

/// Name of an interface; nothing if it is gone, of which netlink will tell.
fn interface(index: u32) -> Option<Name> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    index_to_name(&socket, index).ok().map(Name::from)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_has_come_is_dropped_and_the_end_of_netlink_ends_that() {
        let (changes, mut stream) = futures::channel::mpsc::unbounded();
        for change in 0..3 {
            changes.unbounded_send(change).unwrap();
        }
        drain(&mut stream);
        changes.unbounded_send(3).unwrap();
        assert_eq!(stream.next().now_or_never(), Some(Some(3)), "it is open");
        drop(changes);
        // A thread of its own, for it may never come back.
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || {
            drain(&mut stream);
            done.send(()).unwrap();
        });
        assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(()));
    }

    #[tokio::test]
    async fn every_address_has_the_name_of_its_interface() {
        let (connection, handle, _) = new_multicast_connection(&[]).unwrap();
        tokio::spawn(connection);
        let found = read(&handle).await.unwrap();
        let loopback = OwnAddress { addr: [127, 0, 0, 1].into(), interface: "lo".into() };
        assert!(found.contains(&loopback), "{found:?}");
    }
}
