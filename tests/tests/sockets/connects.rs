//! Every way to connect, and to connect again.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use lb_tests::probe::{FastOpen, Serve, Tcp, Udp};
use lb_tests::{Probe, needs, needs_root, wait_until};

use crate::park::{FORMS, Park, SHORT, SOON, Socket, as_mapped, backend, cluster_ips, none_of, objects_at};

/// Whether the kernel has MPTCP sockets.
pub(crate) fn has_mptcp() -> bool {
    Path::new("/proc/sys/net/mptcp/enabled").exists()
}

/// Connects as `tcp` says, which has the address of no form yet, to Service 1 in every form.
fn wrong_forms(client: &Probe, what: &str, tcp: impl Fn(Tcp, usize) -> Tcp) -> Vec<String> {
    let mut wrong = Vec::new();
    for (form, family, mapped) in FORMS {
        let to = SocketAddr::new(cluster_ips(1)[family], 80);
        let tcp = tcp(Tcp::to(to), family);
        let shown = if mapped { as_mapped(to) } else { to };
        match client.tcp(&if mapped { tcp.mapped() } else { tcp }) {
            Ok(reached) if reached.server() == "backend-1" && reached.peer == Some(shown) => {}
            other => wrong.push(format!("{what}, {form}: {other:?}")),
        }
    }
    wrong
}

#[test]
fn however_a_client_connects_it_reaches_a_backend_and_is_shown_the_frontend() {
    needs_root!();
    let mut park = Park::new("connects");
    park.serve(1);
    park.program(1, &[1]);
    park.start(&[]);
    let own: [IpAddr; 2] = [park.client.ipv4.into(), park.client.ipv6.into()];
    let client = &park.pod;
    let wrong = [
        wrong_forms(client, "blocking", |tcp, _| tcp),
        wrong_forms(client, "non-blocking", |tcp, _| tcp.nonblocking()),
        wrong_forms(client, "closed by RST", |tcp, _| tcp.reset()),
        wrong_forms(client, "bound to an address", |tcp, family| tcp.bind((own[family], 0).into())),
        wrong_forms(client, "bound to a device", |tcp, _| tcp.device("eth0")),
        wrong_forms(client, "sendto with MSG_FASTOPEN", |tcp, _| tcp.fast_open(FastOpen::SendTo)),
        wrong_forms(client, "TCP_FASTOPEN_CONNECT", |tcp, _| tcp.fast_open(FastOpen::Connect)),
    ];
    none_of(&wrong.concat());
}

#[test]
fn mptcp_is_served_as_tcp() {
    needs_root!();
    needs!(has_mptcp(), "MPTCP in the kernel");
    let mut park = Park::new("mptcp");
    park.serve(1);
    park.program(1, &[1]);
    for addr in backend(2) {
        park.net.node(2).add_address(addr).unwrap();
        park.servers.serve(&Serve::tcp("mptcp", (addr, 8080).into()).mptcp()).unwrap();
    }
    park.program(2, &[2]);
    park.start(&[]);
    let mut wrong = wrong_forms(&park.pod, "MPTCP", |tcp, _| tcp.mptcp());
    wrong.extend(wrong_forms(&park.pod, "MPTCP, non-blocking", |tcp, _| tcp.mptcp().nonblocking()));
    for addr in cluster_ips(2) {
        let to = SocketAddr::new(addr, 80);
        match park.pod.tcp(&Tcp::to(to).mptcp()) {
            Ok(reached) if reached.server() == "mptcp" && reached.peer == Some(to) => {}
            other => wrong.push(format!("both sides MPTCP, {to}: {other:?}")),
        }
    }
    none_of(&wrong);
}

/// The kernel connects further subflows by itself, to the address that the first one has reached: the backend's.
#[test]
fn a_further_subflow_of_mptcp_leaves_what_the_socket_shows() {
    needs_root!();
    needs!(has_mptcp(), "MPTCP in the kernel");
    let mut park = Park::new("subflows");
    for (addr, more) in backend(1).into_iter().zip(["10.1.255.9", "fd00:10:1:255::9"]) {
        park.net.node(2).add_address(addr).unwrap();
        park.servers.serve(&Serve::tcp("mptcp", (addr, 8080).into()).mptcp()).unwrap();
        park.net.node(1).add_address(more.parse().unwrap()).unwrap();
        park.net.node(1).netns.ip(&format!("mptcp endpoint add {more} subflow")).unwrap();
    }
    for node in &park.net.nodes {
        node.netns.ip("mptcp limits set subflows 2 add_addr_accepted 0").unwrap();
    }
    park.program(1, &[1]);
    park.start(&[]);
    let mut wrong = Vec::new();
    for (form, family, mapped) in FORMS {
        let to = SocketAddr::new(cluster_ips(1)[family], 80);
        let before = joined_subflows(&park.host);
        let tcp = Tcp::to(to).mptcp();
        let socket = park.host.open_tcp(&if mapped { tcp.mapped() } else { tcp }).unwrap().handle;
        // Data in both directions: only then may there be another subflow (RFC 8684 3.2).
        park.host.exchange(socket, "hello").unwrap();
        wait_until("another subflow", SOON, || joined_subflows(&park.host) > before).unwrap();
        let peer = park.host.names(socket).unwrap().peer;
        if peer != Some(if mapped { as_mapped(to) } else { to }) {
            wrong.push(format!("{form}: {peer:?}, expected {to}"));
        }
        park.host.close(socket).unwrap();
    }
    none_of(&wrong);
}

/// Further subflows that servers have answered, in the namespace of `probe`, since it was made.
fn joined_subflows(probe: &Probe) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/net/netstat", probe.id())).unwrap();
    // A line of names, and one of values.
    let mut lines =
        text.lines().filter_map(|line| line.strip_prefix("MPTcpExt: ")).map(str::split_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let (_, value) = names.zip(values).find(|(name, _)| *name == "MPJoinSynAckRx").unwrap();
    value.parse().unwrap()
}

/// The address is translated before there is a packet, so the pod just speaks to itself.
#[test]
fn a_pod_that_is_its_own_backend_reaches_itself() {
    needs_root!();
    let mut park = Park::new("hairpin");
    let own: [IpAddr; 2] = [park.client.ipv4.into(), park.client.ipv6.into()];
    for addr in own {
        park.pod.serve(&Serve::tcp("self", (addr, 8080).into())).unwrap();
        park.pod.serve(&Serve::udp("self", (addr, 5353).into())).unwrap();
    }
    park.home.apply("service-1", &objects_at(1, &[own])).unwrap();
    park.start(&[]);
    let mut wrong = Vec::new();
    for (form, family, mapped) in FORMS {
        for socket in Socket::ALL {
            let to = SocketAddr::new(cluster_ips(1)[family], socket.port([80, 53]));
            let seen = socket.look(&park.pod, to, mapped, SOON);
            if seen != socket.expect("self", to, mapped) {
                wrong.push(format!("{socket:?}, {form}: {seen}"));
            }
        }
    }
    none_of(&wrong);
}

/// What a socket remembers of an earlier connect must not be shown for a later one.
#[test]
fn a_socket_that_connects_again_is_shown_its_new_peer() {
    needs_root!();
    let mut park = Park::new("again");
    park.serve(1);
    park.serve(2);
    park.program(1, &[1]);
    park.program(2, &[2]);
    park.start(&[]);
    let client = &park.pod;
    for (family, addr) in backend(1).into_iter().enumerate() {
        let services = [1, 2].map(|n| cluster_ips(n)[family]);
        let [stream, other_stream] = services.map(|ip| SocketAddr::new(ip, 80));
        let [datagram, other_datagram] = services.map(|ip| SocketAddr::new(ip, 53));

        let tcp = client.open_tcp(&Tcp::to(stream)).unwrap();
        assert_eq!(tcp.peer, Some(stream));
        for to in [SocketAddr::new(addr, 8080), other_stream, stream, SocketAddr::new(addr, 8080)] {
            assert_eq!(client.reconnect(tcp.handle, to).unwrap().peer, Some(to), "TCP");
        }
        let udp = client.open_udp(&Udp::connected(datagram)).unwrap();
        assert_eq!(udp.peer, Some(datagram));
        for (to, server) in [
            (SocketAddr::new(addr, 5353), "backend-1"),
            (other_datagram, "backend-2"),
            (datagram, "backend-1"),
            (SocketAddr::new(addr, 5353), "backend-1"),
        ] {
            assert_eq!(client.reconnect(udp.handle, to).unwrap().peer, Some(to), "UDP");
            let received = client.exchange(udp.handle, "again").unwrap();
            assert_eq!((received.from, received.answer.server.as_str()), (Some(to), server), "UDP");
        }
    }
}

/// A connect that failed leaves a socket that may try another address, and be shown that.
#[test]
fn a_failed_connect_leaves_nothing_behind() {
    needs_root!();
    let mut park = Park::new("failed");
    let handles = park.serve(1);
    park.program(1, &[1]);
    park.start(&[]);
    let to = SocketAddr::new(cluster_ips(1)[0], 80);
    let kept = park.pod.open_tcp(&Tcp::to(to).timeout(SHORT)).unwrap();
    park.servers.close(handles[0]).unwrap();
    let error = park.pod.reconnect(kept.handle, to).unwrap_err();
    assert_eq!(error.errno(), "ECONNREFUSED");
    let direct = SocketAddr::new(backend(1)[0], 8080);
    park.servers.serve(&Serve::tcp("again", direct)).unwrap();
    assert_eq!(park.pod.reconnect(kept.handle, direct).unwrap().peer, Some(direct));
    assert_eq!(park.pod.exchange(kept.handle, "hello").unwrap().answer.server, "again");
}
