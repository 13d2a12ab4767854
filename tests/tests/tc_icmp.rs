//! What is not a whole TCP segment or datagram of a flow, with real sockets: refusals, ICMP errors, fragments.
//!
//! ```text
//! client ── r1 ── r2 ── node ── r3 ── r4 ── far
//!                        └─ pod
//! ```
//!
//! The link between r1 and r2, or that between r3 and r4, is narrow in some tests; the ends know nothing of it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::PerCpuArray;
use lb_common::abi::{Addr4, Address, Config, Device, FlowAddr as _, PacketLb, Reason};
use lb_common::host::MemTables;
use lb_tests::packets::{attach, fill, load, serve};
use lb_tests::{Netns, Place as _, needs_root};

const LIMIT: Duration = Duration::from_secs(20);
const WIDE: u32 = 1500;
const NARROW: u32 = 1400;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The address with the last digit `host` in network `number`, of either family.
fn at(is_v6: bool, number: u8, host: u8) -> IpAddr {
    let text =
        if is_v6 { format!("fd00:172:16:{number}::{host}") } else { format!("172.16.{number}.{host}") };
    ip(&text)
}

struct Net {
    client: Netns,
    _node: Netns,
    pod: Netns,
    far: Netns,
    ebpf: Ebpf,
    _routers: Vec<Netns>,
}

/// Joins two namespaces by network `number`: the first one is `.1`.
fn join(number: u8, (one, one_device): (&Netns, &str), (two, two_device): (&Netns, &str), mtu: u32) {
    one.join(one_device, two, two_device).unwrap();
    for (netns, device, host) in [(one, one_device, 1), (two, two_device, 2)] {
        let (four, six) = (at(false, number, host), at(true, number, host));
        netns
            .ip(&format!(
                "link set {device} mtu {mtu}
                 addr add {four}/24 dev {device}
                 addr add {six}/64 dev {device} nodad"
            ))
            .unwrap();
    }
}

/// Sends what is for network `to`, or all, by host `host` of network `by`.
fn route(netns: &Netns, to: Option<u8>, (by, host): (u8, u8)) {
    let (four, six) = (at(false, by, host), at(true, by, host));
    let [to_four, to_six] = match to {
        Some(to) => [format!("172.16.{to}.0/24"), format!("fd00:172:16:{to}::/64")],
        None => ["default".into(), "default".into()],
    };
    netns.ip(&format!("route add {to_four} via {four}\nroute add {to_six} via {six}")).unwrap();
}

impl Net {
    /// `mtu` of the link between the client's routers, and of that between those of the backend.
    fn new(mtu: (u32, u32)) -> Self {
        Self::of(mtu, (WIDE, WIDE))
    }

    /// `own` are those of the node's devices towards the client and towards the backend. The other ends take more.
    fn of(mtu: (u32, u32), own: (u32, u32)) -> Self {
        let [client, node, pod, far] = ["client", "node", "pod", "far"].map(|name| Netns::new(name).unwrap());
        let routers = ["r1", "r2", "r3", "r4"].map(|name| Netns::new(name).unwrap());
        let [r1, r2, r3, r4] = &routers;
        for netns in [&node, r1, r2, r3, r4] {
            netns.sysctl("net.ipv4.ip_forward", "1").unwrap();
            netns.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
        }
        join(1, (&client, "eth0"), (r1, "left"), WIDE);
        join(2, (r1, "right"), (r2, "left"), mtu.0);
        join(3, (r2, "right"), (&node, "uplink"), WIDE);
        join(4, (&node, "ov"), (r3, "left"), WIDE);
        join(5, (r3, "right"), (r4, "left"), mtu.1);
        join(6, (r4, "right"), (&far, "eth0"), WIDE);
        join(7, (&node, "pod0"), (&pod, "eth0"), WIDE);
        node.ip(&format!("link set uplink mtu {}\nlink set ov mtu {}", own.0, own.1)).unwrap();
        route(&client, None, (1, 2));
        route(r1, None, (2, 2));
        route(r2, None, (3, 2));
        route(r2, Some(1), (2, 1));
        for number in [1, 2] {
            route(&node, Some(number), (3, 1));
        }
        route(&node, None, (4, 2));
        route(r3, None, (4, 1));
        route(r3, Some(6), (5, 2));
        route(r4, None, (5, 1));
        route(&far, None, (6, 1));
        route(&pod, None, (7, 1));
        let ebpf = programs(&node, own);
        Self { client, _node: node, pod, far, ebpf, _routers: routers.into() }
    }

    /// How often `reason` was counted.
    fn counted(&self, reason: Reason) -> u64 {
        let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map("lb_reasons").unwrap()).unwrap();
        map.get(&(reason as u32), 0).unwrap().iter().sum()
    }
}

/// Services at NodePort 30080, served by `far`; at 30081, served by `pod`; at 30082, served by nobody. Cluster IPs end in the same digit.
fn world(node: &Netns, own: (u32, u32)) -> MemTables {
    let mut world = MemTables { ports: (2000..2400).collect(), ..MemTables::default() };
    for (is_v6, family) in [(false, 0), (true, 10)] {
        let nobody = if is_v6 { ip("::") } else { ip("0.0.0.0") };
        for (port, backend) in (0_u8..).zip([at(is_v6, 6, 2), at(is_v6, 7, 2), nobody]) {
            let id = family + u32::from(port) + 1;
            serve(&mut world, id, (at(is_v6, 96, port), 30_080 + u16::from(port)), backend, port == 1);
        }
        for (number, host) in [(3, 2), (4, 1), (7, 1)] {
            world.addresses.insert(at(is_v6, number, host).into(), Address::NODE);
        }
    }
    for (device, (number, host), bits, mtu) in
        [("uplink", (3, 2), 0, own.0), ("ov", (4, 1), 0, own.1), ("pod0", (7, 1), Device::PODS, WIDE)]
    {
        let ifindex = node.run(|| nix::net::if_::if_nametoindex(device).unwrap());
        let v4 = Addr4::narrow(at(false, number, host).into());
        let v6 = at(true, number, host).into();
        world.devices.insert(ifindex, Device { v4, v6, bits, mtu, ..Device::NONE });
    }
    world.config = Some(Config {
        node_port_min: 30_080,
        node_port_max: 30_082,
        packets: PacketLb::default(),
        masquerade_ports: 400,
        ..Config::OFF
    });
    world
}

fn programs(node: &Netns, own: (u32, u32)) -> Ebpf {
    let mut ebpf = load().unwrap();
    fill(&mut ebpf, &world(node, own)).unwrap();
    for device in ["uplink", "ov", "pod0"] {
        attach(node, &mut ebpf, device, false).unwrap();
    }
    ebpf
}

/// The NodePorts of the node, or the cluster IPs, of a service in both families: who asks, and what.
fn targets(net: &Net, port: u8) -> Vec<(&Netns, SocketAddr)> {
    let mut targets = Vec::new();
    for is_v6 in [false, true] {
        let node_port = SocketAddr::new(at(is_v6, 3, 2), 30_080 + u16::from(port));
        let cluster_ip = SocketAddr::new(at(is_v6, 96, port), 80);
        targets.extend([(&net.client, node_port), (&net.pod, cluster_ip)]);
    }
    targets
}

fn tcp(from: &Netns, to: SocketAddr) -> std::io::Result<TcpStream> {
    from.run(|| TcpStream::connect_timeout(&to, LIMIT))
}

fn udp(from: &Netns, to: SocketAddr) -> UdpSocket {
    from.run(|| {
        let any = if to.is_ipv6() { ip("::") } else { ip("0.0.0.0") };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    })
}

/// NE-1, NE-4.
#[test]
fn clients_hear_at_once_that_nobody_serves() {
    needs_root!();
    let net = Net::new((WIDE, WIDE));
    let mut asked = targets(&net, 2);
    // Ports of a cluster IP that no Service has.
    asked.extend([false, true].map(|is_v6| (&net.pod, SocketAddr::new(at(is_v6, 96, 0), 81))));
    for (from, to) in asked {
        let before = Instant::now();
        assert_eq!(tcp(from, to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "TCP {to}");
        let socket = udp(from, to);
        socket.send(b"hello").unwrap();
        let error = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "UDP {to}");
        assert!(before.elapsed() < Duration::from_secs(1), "{to}: only after {:?}", before.elapsed());
    }
    assert_eq!(net.counted(Reason::RefusedPacket), 12);
}

/// A server that sends back what it gets, until the end, over TCP.
fn echo(netns: &Netns, at: SocketAddr) -> thread::JoinHandle<usize> {
    let listener = netns.run(|| TcpListener::bind(at).unwrap());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&got).unwrap();
        got.len()
    })
}

/// The path MTU that a namespace believes in.
fn believed(netns: &Netns, to: IpAddr) -> String {
    let shown = Command::new("ip").args(["route", "get", &to.to_string()]).in_netns(netns).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let mtu = shown.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    mtu.unwrap_or("unknown").to_owned()
}

/// Sends a megabyte there and back.
fn transfers(net: &Net, from: &Netns, to: SocketAddr, (server, backend): (&Netns, IpAddr)) {
    let served = echo(server, SocketAddr::new(backend, 8080));
    let mut stream = tcp(from, to).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    let sent = vec![7; 1 << 20];
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap_or_else(|error| {
        panic!("{to}: {error} after {} bytes; {} errors told", got.len(), net.counted(Reason::IcmpError))
    });
    assert_eq!((got.len(), served.join().unwrap()), (sent.len(), sent.len()), "{to}");
}

/// 2.25-icmp.
#[test]
fn a_backend_learns_of_a_narrow_link_towards_the_client() {
    needs_root!();
    for (port, number, seen) in [(30_080, 6, (4, 1)), (30_081, 7, (1, 1))] {
        // A client that knows the path's MTU asks for small segments: each has its own.
        let net = Net::new((NARROW, WIDE));
        let server = if number == 6 { &net.far } else { &net.pod };
        for is_v6 in [false, true] {
            let before = net.counted(Reason::IcmpError);
            let to = SocketAddr::new(at(is_v6, 3, 2), port);
            transfers(&net, &net.client, to, (server, at(is_v6, number, 2)));
            assert!(net.counted(Reason::IcmpError) > before, "{to}");
            assert_eq!(believed(server, at(is_v6, seen.0, seen.1)), "1400", "{to}");
        }
    }
}

/// 2.25-icmp.
#[test]
fn a_client_learns_of_a_narrow_link_towards_the_backend() {
    needs_root!();
    let net = Net::new((WIDE, NARROW));
    for (from, to) in targets(&net, 0) {
        let before = net.counted(Reason::IcmpError);
        transfers(&net, from, to, (&net.far, at(to.is_ipv6(), 6, 2)));
        assert!(net.counted(Reason::IcmpError) > before, "{to}");
        assert_eq!(believed(from, to.ip()), "1400", "{to}");
    }
}

/// 2.25-icmp: what leaves past the stack is not larger than its way takes, and its sender learns of it.
#[test]
fn both_ends_learn_of_a_narrow_link_of_the_node_itself() {
    needs_root!();
    for own in [(WIDE, NARROW), (NARROW, WIDE)] {
        let net = Net::of((WIDE, WIDE), own);
        for is_v6 in [false, true] {
            let before = net.counted(Reason::TooBig);
            let to = SocketAddr::new(at(is_v6, 3, 2), 30_080);
            transfers(&net, &net.client, to, (&net.far, at(is_v6, 6, 2)));
            assert!(net.counted(Reason::TooBig) > before, "{to} {own:?}");
            let (told, of) =
                if own.1 == NARROW { (&net.client, to.ip()) } else { (&net.far, at(is_v6, 4, 1)) };
            assert_eq!(believed(told, of), "1400", "{to} {own:?}");
        }
    }
}

/// Sends every datagram back until `stop`.
fn echo_datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut bytes = [0; 9000];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(&bytes[..length], from).unwrap();
        }
    }
}

/// 2.25-fragments.
#[test]
fn datagrams_in_pieces_arrive_and_are_answered() {
    needs_root!();
    let net = Net::new((WIDE, WIDE));
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        for is_v6 in [false, true] {
            for (server, number) in [(&net.far, 6), (&net.pod, 7)] {
                let at = SocketAddr::new(at(is_v6, number, 2), 8080);
                let socket = server.run(|| UdpSocket::bind(at).unwrap());
                scope.spawn(move || echo_datagrams(&socket, stop));
            }
        }
        let mut lost = Vec::new();
        let asked: Vec<_> = [0, 1].into_iter().flat_map(|port| targets(&net, port)).collect();
        for (from, to) in asked {
            let socket = udp(from, to);
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            // The neighbour may not be known yet.
            let got = (0..5).find_map(|_| {
                let sent: Vec<u8> = (0..4000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
                socket.send(&sent).ok()?;
                let mut bytes = [0; 9000];
                let length = socket.recv(&mut bytes).ok()?;
                Some(bytes[..length] == sent)
            });
            if got != Some(true) {
                lost.push((to, got));
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(lost.is_empty(), "{lost:?}");
    });
}
