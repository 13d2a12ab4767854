//! Every kind of socket and every kind of frontend, cell by cell.

use std::net::{IpAddr, SocketAddr};

use lb_tests::needs_root;
use lb_tests::probe::Serve;

use crate::park::{FORMS, KINDS, LOOPBACK, NODE_PORTS, Park, SOON, Socket, everywhere, none_of};

/// Service 1 everywhere, with one backend on the other node.
fn park(label: &str) -> Park {
    let mut park = Park::new(label);
    park.serve(1);
    park.home.apply("service-1", &everywhere(&[1])).unwrap();
    park.start(&[]);
    park
}

/// LB-4, DS-6, 1.2-protocols, 2.25-getpeername: load-balancer addresses are served on the node, and IPv4 by sockets of both families.
#[test]
fn every_kind_of_socket_reaches_every_kind_of_frontend_and_is_shown_it() {
    needs_root!();
    let park = park("cells");
    let mut wrong = Vec::new();
    for (client, probe) in [("pod", &park.pod), ("host", &park.host)] {
        for (kind, addresses, ports) in KINDS {
            for (form, family, mapped) in FORMS {
                for socket in Socket::ALL {
                    let to = SocketAddr::new(addresses[family].parse().unwrap(), socket.port(ports));
                    let seen = socket.look(probe, to, mapped, SOON);
                    let wanted = socket.expect("backend-1", to, mapped);
                    if seen != wanted {
                        wrong
                            .push(format!("{client}, {socket:?}, {form}, {kind}: {seen}; expected {wanted}"));
                    }
                }
            }
        }
    }
    none_of(&wrong);
}

/// NP-4, NP-15, MQ-8: every pod has a loopback of its own, and another node decides for itself what its NodePorts mean.
#[test]
fn a_node_port_is_served_on_this_nodes_addresses_and_for_the_host_on_loopback() {
    needs_root!();
    let park = park("nodeports");
    let loopback: [IpAddr; 2] = LOOPBACK.map(|addr| addr.parse().unwrap());
    let other: [IpAddr; 2] = [park.net.node(2).ipv4.into(), park.net.node(2).ipv6.into()];
    for (probe, name, addresses) in [(&park.pod, "own", loopback), (&park.servers, "other-node", other)] {
        for addr in addresses {
            probe.serve(&Serve::tcp(name, (addr, NODE_PORTS[0]).into())).unwrap();
            probe.serve(&Serve::udp(name, (addr, NODE_PORTS[1]).into())).unwrap();
        }
    }
    let mut wrong = Vec::new();
    for (client, probe, addresses, server) in [
        ("host", &park.host, loopback, "backend-1"),
        ("pod", &park.pod, loopback, "own"),
        ("pod", &park.pod, other, "other-node"),
        ("host", &park.host, other, "other-node"),
    ] {
        for (form, family, mapped) in FORMS {
            for socket in Socket::ALL {
                let to = SocketAddr::new(addresses[family], socket.port(NODE_PORTS));
                let seen = socket.look(probe, to, mapped, SOON);
                if seen != socket.expect(server, to, mapped) {
                    wrong.push(format!("{client}, {socket:?}, {form}, {to}: {seen}; expected {server}"));
                }
            }
        }
    }
    none_of(&wrong);
}

/// NP-4: to the kernel an unspecified destination is this host's loopback, which it puts in its place after the hook.
#[test]
fn a_node_port_on_the_unspecified_address_is_that_of_loopback() {
    needs_root!();
    let park = park("unspecified");
    let [unspecified, loopback]: [[IpAddr; 2]; 2] =
        [["0.0.0.0", "::"], LOOPBACK].map(|addresses| addresses.map(|addr| addr.parse().unwrap()));
    for addr in loopback {
        park.pod.serve(&Serve::tcp("own", (addr, NODE_PORTS[0]).into())).unwrap();
        park.pod.serve(&Serve::udp("own", (addr, NODE_PORTS[1]).into())).unwrap();
    }
    let mut wrong = Vec::new();
    for (client, probe, server) in [("host", &park.host, "backend-1"), ("pod", &park.pod, "own")] {
        for (form, family, mapped) in FORMS {
            for socket in Socket::ALL {
                let port = socket.port(NODE_PORTS);
                let seen = socket.look(probe, (unspecified[family], port).into(), mapped, SOON);
                let wanted = socket.expect(server, (loopback[family], port).into(), mapped);
                if seen != wanted {
                    wrong.push(format!("{client}, {socket:?}, {form}: {seen}; expected {wanted}"));
                }
            }
        }
    }
    none_of(&wrong);
}
