//! The addresses of this node, and their changes, from rtnetlink in the agent's own network namespace.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use lb_common::abi::{Addr, Address};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection, packet_route::address::AddressAttribute};
use tokio::{sync::mpsc::Sender, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Changes come in bursts (an interface that goes up); they are read once per burst.
const SETTLE: Duration = Duration::from_millis(50);
/// Between two attempts after netlink has failed.
const RETRY: Duration = Duration::from_secs(5);

/// What every address of this node is to the programs.
///
/// Loopback addresses other than 127.0.0.1 and ::1 serve no NodePort, as under kube-proxy's nftables mode (NP-4).
pub fn classify(addresses: impl IntoIterator<Item = IpAddr>) -> BTreeMap<Addr, Address> {
    let mut known: BTreeMap<Addr, Address> = addresses
        .into_iter()
        .filter(|addr| !addr.is_loopback() && !addr.is_unspecified())
        .map(|addr| (Addr::from(addr), Address::NODE))
        .collect();
    known.insert(Addr::LOOPBACK_V4, Address::LOOPBACK);
    known.insert(Addr::LOOPBACK_V6, Address::LOOPBACK);
    known
}

/// Sends the node's addresses once, and again after every change, until `stop`.
pub async fn run<M: Send + 'static>(
    messages: Sender<M>,
    wrap: impl Fn(BTreeMap<Addr, Address>) -> M,
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
    wrap: &impl Fn(BTreeMap<Addr, Address>) -> M,
    stop: &CancellationToken,
) -> Result<(), rtnetlink::Error> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut changes) = new_multicast_connection(&groups)
        .map_err(|error| rtnetlink::Error::NamespaceError(error.to_string()))?;
    let connection = tokio::spawn(connection);
    let mut sent = BTreeMap::new();
    let result = loop {
        let addresses = match read(&handle).await {
            Ok(addresses) => classify(addresses),
            Err(error) => break Err(error),
        };
        if addresses != sent {
            sent.clone_from(&addresses);
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
async fn read(handle: &Handle) -> Result<Vec<IpAddr>, rtnetlink::Error> {
    let mut addresses = Vec::new();
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
        addresses.extend(local.or(any));
    }
    Ok(addresses)
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

    #[test]
    fn loopback_serves_node_ports_only_on_its_two_well_known_addresses() {
        let known =
            classify(["127.0.0.1", "127.0.0.53", "10.0.0.1", "fd00::1"].map(|addr| addr.parse().unwrap()));
        let at = |addr: &str| known.get(&Addr::from(addr.parse::<IpAddr>().unwrap())).copied();
        assert_eq!(at("127.0.0.1"), Some(Address::LOOPBACK));
        assert_eq!(at("::1"), Some(Address::LOOPBACK));
        assert_eq!(at("127.0.0.53"), None);
        assert_eq!(at("10.0.0.1"), Some(Address::NODE));
        assert_eq!(at("fd00::1"), Some(Address::NODE));
    }
}
