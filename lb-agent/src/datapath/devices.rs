//! The addresses and devices of this node, and their changes, from rtnetlink in the agent's own network
//! namespace.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags},
        link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
};
use tokio::{sync::mpsc::Sender, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    Layer,
    addresses::{OwnAddress, OwnAddresses},
    links::{Link, LinkAddress, LinkKind, Links},
};

/// Changes come in bursts (an interface that goes up); they are read once per burst.
const SETTLE: Duration = Duration::from_millis(50);
/// Between two attempts after netlink has failed.
const RETRY: Duration = Duration::from_secs(5);

/// What rtnetlink says of this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Network {
    /// Its addresses.
    pub addresses: OwnAddresses,
    /// Its devices.
    pub links: Links,
    /// Counts bursts in which somebody has changed a qdisc or a filter; wrapping.
    pub filters: u64,
}

/// Sends what the kernel says of this node's network once, and again after every change, until `stop`.
pub async fn run<M: Send + 'static>(
    messages: Sender<M>,
    wrap: impl Fn(Network) -> M,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        if let Err(error) = follow(&messages, &wrap, &stop).await {
            warn!(
                %error, retry = ?RETRY,
                "cannot read this node's addresses and devices, NodePorts keep the last known ones"
            );
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(RETRY) => {}
            }
        }
    }
}

async fn follow<M>(
    messages: &Sender<M>,
    wrap: &impl Fn(Network) -> M,
    stop: &CancellationToken,
) -> Result<(), rtnetlink::Error> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Tc,
    ];
    let (connection, handle, mut changes) = new_multicast_connection(&groups)
        .map_err(|error| rtnetlink::Error::NamespaceError(error.to_string()))?;
    let connection = tokio::spawn(connection);
    let mut sent = None;
    let mut filters = 0_u64;
    let result = loop {
        let network = match read(&handle).await {
            Ok(network) => Network { filters, ..network },
            Err(error) => break Err(error),
        };
        if sent.as_ref() != Some(&network) {
            sent = Some(network.clone());
            if messages.send(wrap(network)).await.is_err() {
                break Ok(());
            }
        }
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            change = changes.next() => {
                let Some((change, _)) = change else { break Err(rtnetlink::Error::RequestFailed) };
                sleep(SETTLE).await;
                let mut is_of_filters = tells_of_filters(&change);
                drain(&mut changes, |(change, _)| is_of_filters |= tells_of_filters(&change));
                filters = filters.wrapping_add(is_of_filters.into());
            }
        }
    };
    connection.abort();
    result
}

/// Takes what has come already, which is part of the next reading. A stream that has ended yields its end again and again.
fn drain<S: Stream + Unpin>(changes: &mut S, mut each: impl FnMut(S::Item)) {
    while let Some(Some(change)) = changes.next().now_or_never() {
        each(change);
    }
}

/// Whether somebody has changed a qdisc or a filter: nothing else says that our programs were taken off.
const fn tells_of_filters(change: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    matches!(
        change.payload,
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewQueueDiscipline(_)
                | RouteNetlinkMessage::DelQueueDiscipline(_)
                | RouteNetlinkMessage::NewTrafficFilter(_)
                | RouteNetlinkMessage::DelTrafficFilter(_)
        )
    )
}

/// All devices and their addresses.
async fn read(handle: &Handle) -> Result<Network, rtnetlink::Error> {
    let mut network = Network::default();
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await? {
        if let Some(link) = link(&message) {
            network.links.insert(message.header.index, link);
        }
    }
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await? {
        // IFA_LOCAL is the own address, IFA_ADDRESS the peer's on point-to-point links (rtnetlink(7)).
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(addr) => Some(*addr),
            _ => None,
        });
        let any = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(addr) => Some(*addr),
            _ => None,
        });
        // One that came between the two lists belongs to a device that netlink will tell of.
        let Some(link) = network.links.get_mut(&message.header.index) else { continue };
        let Some(addr) = local.or(any) else { continue };
        network.addresses.insert(OwnAddress { addr: addr.to_canonical(), interface: link.name.clone() });
        let extended = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        if is_for_use(addr, message.header.flags, extended.unwrap_or(AddressFlags::empty())) {
            link.addrs.push(LinkAddress { addr, prefix_len: message.header.prefix_len });
        }
    }
    for (device, router) in gateways(handle).await? {
        if let Some(link) = network.links.get_mut(&device) {
            link.has_gateway = true;
            link.router = link.router.or(router);
        }
    }
    Ok(network)
}

/// Whether something may be sent from an address for longer than a moment: it is not a temporary one (RFC 8981), nor one that
/// is being tried or given up. Of IPv4, where the same bit says something else, all are.
fn is_for_use(addr: IpAddr, flags: AddressHeaderFlags, extended: AddressFlags) -> bool {
    let passing = AddressHeaderFlags::Tentative
        | AddressHeaderFlags::Deprecated
        | AddressHeaderFlags::Dadfailed
        | AddressHeaderFlags::Secondary;
    let passes = AddressFlags::Tentative | AddressFlags::Deprecated | AddressFlags::Dadfailed;
    addr.is_ipv4() || !(flags.intersects(passing) || extended.intersects(passes))
}

fn link(message: &LinkMessage) -> Option<Link> {
    let (mut name, mut controller, mut mtu) = (None, None, 0);
    let (mut kind, mut is_tethered) = (LinkKind::Other, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.as_str().into()),
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::LinkNetNsId(_) => is_tethered = true,
            LinkAttribute::LinkInfo(infos) => {
                let is = |wanted| infos.contains(&LinkInfo::Kind(wanted));
                if is(InfoKind::Bridge) {
                    kind = LinkKind::Bridge;
                } else if is(InfoKind::Veth) {
                    kind = LinkKind::Tethered;
                }
            }
            _ => {}
        }
    }
    if kind == LinkKind::Tethered && !is_tethered {
        // Both ends are here.
        kind = LinkKind::Other;
    }
    let layer = message.header.link_layer_type;
    if layer == LinkLayerType::Loopback {
        kind = LinkKind::Loopback;
    }
    let layer = match layer {
        LinkLayerType::Ether => Some(Layer::Ethernet),
        // Those that `dev_is_mac_header_xmit` (include/linux/if_arp.h) names.
        LinkLayerType::None
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp => Some(Layer::Ip),
        _ => None,
    };
    Some(Link {
        name: name?,
        kind,
        controller,
        layer,
        addrs: Vec::new(),
        has_gateway: false,
        router: None,
        mtu,
    })
}

/// Devices that a route through a gateway leads out of, and the gateway if it is an IPv6 one; those of more general routes first.
async fn gateways(handle: &Handle) -> Result<Vec<(u32, Option<Ipv6Addr>)>, rtnetlink::Error> {
    let mut found = Vec::new();
    for ask in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let mut routes = handle.route().get(ask).execute();
        while let Some(route) = routes.try_next().await? {
            let bits = route.header.destination_prefix_length;
            found.extend(ways(&route).into_iter().map(|way| (bits, way)));
        }
    }
    found.sort_by_key(|(bits, _)| *bits);
    Ok(found.into_iter().map(|(_, way)| way).collect())
}

/// The devices by which a route reaches gateways, and those that are IPv6 ones.
fn ways(route: &RouteMessage) -> Vec<(u32, Option<Ipv6Addr>)> {
    let is_main = route.header.table == RouteHeader::RT_TABLE_MAIN;
    if !is_main || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut ways = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(device) => {
                ways.extend(gateway(*device, &route.attributes));
            }
            RouteAttribute::MultiPath(hops) => {
                ways.extend(hops.iter().filter_map(|hop| gateway(hop.interface_index, &hop.attributes)));
            }
            _ => {}
        }
    }
    ways
}

/// A device, if attributes name a gateway behind it, and which if it is an IPv6 one.
fn gateway(device: u32, attributes: &[RouteAttribute]) -> Option<(u32, Option<Ipv6Addr>)> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet6(router)) => Some((device, Some(*router))),
        RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => Some((device, None)),
        _ => None,
    })
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
        drain(&mut stream, drop);
        changes.unbounded_send(3).unwrap();
        assert_eq!(stream.next().now_or_never(), Some(Some(3)), "it is open");
        drop(changes);
        // A thread of its own, for it may never come back.
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || {
            drain(&mut stream, drop);
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
        assert!(found.addresses.contains(&loopback), "{found:?}");
        assert_eq!(found.links[&1].kind, LinkKind::Loopback);
        assert_eq!(found.links[&1].addrs[0].prefix_len, 8);
    }
}
