//! Real traffic through the programs at tc: clients without socket load balancing, and clients outside.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Addr4, Address, Config, Device, FlowAddr as _};
use lb_common::host::MemTables;
use lb_tests::packets::{attach, fill, load, serve};
use lb_tests::probe::{Serve, Tcp, Udp};
use lb_tests::{Node, Pod, Topology, needs, needs_root};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ifindex(node: &Node, name: &str) -> u32 {
    node.netns.run(|| nix::net::if_::if_nametoindex(name).unwrap())
}

/// Whether programs are attached at tc by links here.
fn has_links() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}

/// What the programs are told: Services 1 and 2 on node 2, 3 and 4 on this node, and this node's devices.
fn world(node: &Node, own: &Pod, far: [IpAddr; 2]) -> MemTables {
    let mut world = MemTables { ports: (2000..2400).collect(), ..MemTables::default() };
    serve(&mut world, 1, (ip("10.0.1.100"), 30_080), far[0], false);
    serve(&mut world, 2, (ip("fd00:10:0:1::100"), 30_080), far[1], false);
    serve(&mut world, 3, (ip("10.0.2.100"), 30_081), own.ipv4.into(), true);
    serve(&mut world, 4, (ip("fd00:10:0:2::100"), 30_081), own.ipv6.into(), true);
    for addr in [IpAddr::from(node.ipv4), node.ipv6.into()] {
        world.addresses.insert(addr.into(), Address::NODE);
    }
    let device = Device {
        v4: Addr4::narrow(IpAddr::from(node.ipv4).into()),
        v6: IpAddr::from(node.ipv6).into(),
        ..Device::NONE
    };
    world.devices.insert(ifindex(node, "eth0"), device);
    for pods in ["pod0", "pod1"] {
        world.devices.insert(ifindex(node, pods), Device { bits: Device::PODS, ..device });
    }
    world.config =
        Some(Config { node_port_min: 30_080, node_port_max: 30_081, masquerade_ports: 400, ..Config::OFF });
    world
}

fn reaches(tcx: bool) {
    let net = Topology::pair().unwrap();
    let node = net.node(1);
    let pod = node.add_pod("client", [10, 1, 1, 10].into()).unwrap();
    let own = node.add_pod("own", [10, 1, 1, 11].into()).unwrap();
    let far = [ip("10.2.255.1"), ip("fd00:10:2:255::1")];
    let servers = net.node(2).probe("servers").unwrap();
    let local = own.probe("local").unwrap();
    for addr in far {
        net.node(2).add_address(addr).unwrap();
        servers.serve(&Serve::tcp("far", (addr, 8080).into())).unwrap();
        servers.serve(&Serve::udp("far", (addr, 8080).into())).unwrap();
    }
    for addr in [IpAddr::from(own.ipv4), own.ipv6.into()] {
        local.serve(&Serve::tcp("own", (addr, 8080).into())).unwrap();
        local.serve(&Serve::udp("own", (addr, 8080).into())).unwrap();
    }
    let mut ebpf = load().unwrap();
    fill(&mut ebpf, &world(node, &own, far)).unwrap();
    for device in ["eth0", "pod0", "pod1"] {
        attach(&node.netns, &mut ebpf, device, tcx).unwrap();
    }
    let client = pod.probe("pod").unwrap();
    let outside = net.node(2).probe("outside").unwrap();
    let mut wrong = Vec::new();
    for (probe, who, to, server, seen) in [
        (&client, "pod", "10.0.1.100:80", "far", IpAddr::from(pod.ipv4)),
        (&client, "pod", "[fd00:10:0:1::100]:80", "far", pod.ipv6.into()),
        (&client, "pod", "10.0.2.100:80", "own", pod.ipv4.into()),
        (&client, "pod", "[fd00:10:0:2::100]:80", "own", pod.ipv6.into()),
        (&client, "pod", "192.168.50.1:30080", "far", pod.ipv4.into()),
        (&outside, "outside", "192.168.50.1:30080", "far", node.ipv4.into()),
        (&outside, "outside", "[fd00:192:168:50::1]:30080", "far", node.ipv6.into()),
        (&outside, "outside", "192.168.50.1:30081", "own", net.node(2).ipv4.into()),
        (&outside, "outside", "[fd00:192:168:50::1]:30081", "own", net.node(2).ipv6.into()),
        // A pod that meets itself.
        (&local, "own", "10.0.2.100:80", "own", node.ipv4.into()),
        (&local, "own", "[fd00:10:0:2::100]:80", "own", node.ipv6.into()),
    ] {
        let to: SocketAddr = to.parse().unwrap();
        for (kind, reached) in [("TCP", probe.tcp(&Tcp::to(to))), ("UDP", probe.udp(&Udp::to(to)))] {
            let said = match reached {
                Ok(reached) => format!(
                    "{} sees {}",
                    reached.server(),
                    reached.answer.as_ref().unwrap().client.ip().to_canonical()
                ),
                Err(error) => error.to_string(),
            };
            let wanted = format!("{server} sees {seen}");
            if said != wanted {
                wrong.push(format!("{who} {kind} {to}: {said} instead of {wanted}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn clients_without_socket_hooks_and_outside_reach_services_through_links() {
    needs_root!();
    needs!(has_links(), "links at tc (kernel 6.6)");
    reaches(true);
}

#[test]
fn clients_without_socket_hooks_and_outside_reach_services_through_clsact() {
    needs_root!();
    reaches(false);
}
