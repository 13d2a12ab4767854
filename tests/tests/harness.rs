//! The harness itself: what every other privileged test relies on.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use lb_tests::probe::{Attempt, FastOpen, Look, Many, Receiver, Serve, Step, Survey, Tcp, Udp};
use lb_tests::{
    Bpffs, Cgroup, Netns, Place as _, Probe, Process, Topology, cgroup, needs, needs_root, wait_until,
};

/// For limits of things that are expected to happen at once.
const SOON: Duration = Duration::from_secs(20);

/// For limits of things that are expected not to happen.
const SHORT: Duration = Duration::from_millis(150);

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// A namespace with two addresses of each family, and a probe in it.
fn alone() -> (Netns, Cgroup, Probe) {
    let netns = Netns::new("alone").unwrap();
    netns.ip("addr add 10.9.0.1/32 dev lo\naddr add fd00:10:9::1/128 dev lo nodad").unwrap();
    let cgroup = Cgroup::new("alone").unwrap();
    let probe = Probe::start("alone", &netns, &cgroup).unwrap();
    (netns, cgroup, probe)
}

#[test]
fn pods_of_two_nodes_reach_each_other_over_both_families_and_protocols() {
    needs_root!();
    let net = Topology::pair().unwrap();
    let web = net.node(1).add_pod("web", [10, 1, 1, 10].into()).unwrap();
    let database = net.node(2).add_pod("database", [10, 2, 2, 10].into()).unwrap();
    let server = database.probe("database").unwrap();
    for address in ["10.2.2.10:3306", "[fd00:10:2:2::10]:3306"] {
        server.serve(&Serve::tcp("db", at(address))).unwrap();
        server.serve(&Serve::udp("db", at(address))).unwrap();
    }

    let host = net.node(1).probe("host").unwrap();
    let pod = web.probe("web").unwrap();
    let clients = [(&host, "192.168.50.1", "fd00:192:168:50::1"), (&pod, "10.1.1.10", "fd00:10:1:1::10")];
    for (client, ipv4, ipv6) in clients {
        for (to, source) in [("10.2.2.10:3306", ipv4), ("[fd00:10:2:2::10]:3306", ipv6)] {
            let tcp = client.tcp(&Tcp::to(at(to))).unwrap();
            assert_eq!(tcp.server(), "db");
            assert_eq!(tcp.peer, Some(at(to)));
            assert_eq!(tcp.answer.unwrap().client, tcp.local);
            assert_eq!(tcp.local.ip().to_string(), source);
            for udp in [Udp::to(at(to)), Udp::connected(at(to))] {
                let seen = client.udp(&udp).unwrap();
                assert_eq!(seen.from, Some(at(to)), "{udp:?}");
                assert_eq!(seen.answer.unwrap().client.ip().to_string(), source, "{udp:?}");
            }
        }
    }
}

#[test]
fn pods_of_one_node_reach_each_other_and_their_node() {
    needs_root!();
    let net = Topology::single().unwrap();
    let node = net.node(1);
    node.add_address("10.1.255.1".parse().unwrap()).unwrap();
    let a = node.add_pod("a", [10, 1, 0, 1].into()).unwrap();
    let b = node.add_pod("b", [10, 1, 0, 2].into()).unwrap();
    let server = b.probe("b").unwrap();
    server.serve(&Serve::tcp("b", at("10.1.0.2:80"))).unwrap();
    let host = node.probe("host").unwrap();
    host.serve(&Serve::tcp("host", at("192.168.50.1:80"))).unwrap();
    host.serve(&Serve::tcp("further", at("10.1.255.1:80"))).unwrap();

    let client = a.probe("a").unwrap();
    assert_eq!(client.tcp(&Tcp::to(at("10.1.0.2:80"))).unwrap().server(), "b");
    assert_eq!(client.tcp(&Tcp::to(at("192.168.50.1:80"))).unwrap().server(), "host");
    assert_eq!(client.tcp(&Tcp::to(at("10.1.255.1:80"))).unwrap().server(), "further");
}

/// What the kernel does a while after it was asked for, the harness waits for: the first datagram arrives.
#[test]
fn addresses_and_cables_work_as_soon_as_they_are_made() {
    needs_root!();
    for _ in 0..20 {
        let (here, there) = (Netns::new("here").unwrap(), Netns::new("there").unwrap());
        here.ip("addr add fd00:10:9::1/128 dev lo nodad").unwrap();
        here.run(|| UdpSocket::bind("[::]:0").unwrap().connect("[fd00:10:9::1]:53").unwrap());

        here.join("eth0", &there, "eth0").unwrap();
        for netns in [&here, &there] {
            let flags = netns.run(|| {
                let eth0 = getifaddrs().unwrap().find(|device| device.interface_name == "eth0");
                eth0.unwrap().flags
            });
            assert!(flags.contains(InterfaceFlags::IFF_RUNNING));
        }
        for (netns, number) in [(&here, 1), (&there, 2)] {
            let addresses =
                format!("addr add 10.9.0.{number}/24 dev eth0\naddr add fd00::{number}/64 dev eth0 nodad");
            netns.ip(&addresses).unwrap();
        }
        for (client, server) in [("10.9.0.1:0", "10.9.0.2:53"), ("[fd00::1]:0", "[fd00::2]:53")] {
            let server = there.run(|| UdpSocket::bind(server).unwrap());
            let client = here.run(|| UdpSocket::bind(client).unwrap());
            client.send_to(b"first", server.local_addr().unwrap()).unwrap();
            server.set_read_timeout(Some(SOON)).unwrap();
            let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
            assert_eq!(from, client.local_addr().unwrap());
        }
    }
}

/// No error of the kernel may stand in for a missing translation: packets to a Service address leave and are
/// lost, for every kind of client.
#[test]
fn a_service_address_has_a_route_that_leads_nowhere() {
    needs_root!();
    for net in [Topology::single().unwrap(), Topology::pair().unwrap()] {
        for family in ["ipv4", "ipv6"] {
            // A gateway that does not answer would be noticed after three seconds: make that 30 ms.
            let interval = format!("net.{family}.neigh.eth0.retrans_time_ms");
            net.node(1).netns.sysctl(&interval, "10").unwrap();
        }
        let pod = net.node(1).add_pod("pod", [10, 1, 1, 1].into()).unwrap();
        for client in [net.node(1).probe("host").unwrap(), pod.probe("pod").unwrap()] {
            for service in ["10.0.1.100:3306", "[fd00:10:0:1::100]:3306"] {
                let tcp = client.tcp(&Tcp::to(at(service)).timeout(SHORT)).unwrap_err();
                assert_eq!((tcp.step(), tcp.errno()), (Some(Step::Connect), "TIMEOUT"));
                let udp = client.udp(&Udp::connected(at(service)).timeout(SHORT)).unwrap_err();
                assert_eq!((udp.step(), udp.errno()), (Some(Step::Receive), "TIMEOUT"));
            }
        }
    }
}

#[test]
fn a_pod_that_is_dropped_is_gone_at_once_and_can_come_back_with_its_address() {
    needs_root!();
    let net = Topology::pair().unwrap();
    let client = net.node(1).probe("client").unwrap();
    let (address, to) = (Ipv4Addr::new(10, 2, 0, 1), Tcp::to(at("10.2.0.1:80")).timeout(SHORT));
    for round in ["first", "second", "third"] {
        let pod = net.node(2).add_pod("pod", address).unwrap();
        let server = pod.probe("server").unwrap();
        server.serve(&Serve::tcp(round, at("10.2.0.1:80"))).unwrap();
        assert_eq!(client.tcp(&to).unwrap().server(), round);
        drop(pod);
        assert_eq!(client.tcp(&to).unwrap_err().errno(), "TIMEOUT");
    }
}

#[test]
fn clients_see_the_errors_of_the_kernel_by_name() {
    needs_root!();
    let (_netns, _cgroup, probe) = alone();
    for to in ["127.0.0.1:81", "[::1]:81"] {
        for tcp in [Tcp::to(at(to)), Tcp::to(at(to)).nonblocking()] {
            let error = probe.tcp(&tcp).unwrap_err();
            assert_eq!((error.step(), error.errno()), (Some(Step::Connect), "ECONNREFUSED"), "{tcp:?}");
        }
        // The ICMP answer to the datagram reaches the socket as the error of its next call.
        let error = probe.udp(&Udp::connected(at(to))).unwrap_err();
        assert_eq!((error.step(), error.errno()), (Some(Step::Receive), "ECONNREFUSED"));
    }
    assert_eq!(probe.tcp(&Tcp::to(at("10.8.0.1:80"))).unwrap_err().errno(), "ENETUNREACH");
    let error = probe.tcp(&Tcp::to(at("127.0.0.1:80")).bind(at("10.8.0.1:0"))).unwrap_err();
    assert_eq!((error.step(), error.errno()), (Some(Step::Bind), "EADDRNOTAVAIL"));
    let error = probe.tcp(&Tcp::to(at("127.0.0.1:80")).device("eth9")).unwrap_err();
    assert_eq!((error.step(), error.errno()), (Some(Step::Socket), "ENODEV"));

    probe.serve(&Serve::udp("one", at("127.0.0.1:53"))).unwrap();
    let error = probe.serve(&Serve::udp("two", at("127.0.0.1:53"))).unwrap_err();
    assert_eq!((error.step(), error.errno()), (Some(Step::Bind), "EADDRINUSE"));
}

#[test]
fn every_kind_of_tcp_client_is_understood_by_the_server() {
    needs_root!();
    let (_netns, _cgroup, probe) = alone();
    let to = at("10.9.0.1:80");
    probe.serve(&Serve::tcp("v4", to)).unwrap();
    probe.serve(&Serve::tcp("v6", at("[fd00:10:9::1]:80"))).unwrap();
    let dual = probe.serve(&Serve::tcp("dual", at("[::]:8080")).dual()).unwrap();
    assert_eq!(dual.local, at("[::]:8080"));

    let clients = [
        Tcp::to(to),
        Tcp::to(to).nonblocking(),
        Tcp::to(to).mapped(),
        Tcp::to(to).device("lo"),
        Tcp::to(to).bind(at("127.0.0.5:0")),
        Tcp::to(to).reset(),
        Tcp::to(to).fast_open(FastOpen::SendTo),
        Tcp::to(to).fast_open(FastOpen::Connect),
    ];
    for tcp in clients {
        let reached = probe.tcp(&tcp).unwrap();
        assert_eq!(reached.server(), "v4", "{tcp:?}");
        assert_eq!(reached.peer.unwrap().ip().to_canonical(), to.ip(), "{tcp:?}");
        let seen = reached.answer.unwrap();
        assert_eq!(seen.text, "hello");
        assert_eq!(seen.client.ip(), reached.local.ip().to_canonical(), "{tcp:?}");
    }
    let bound = probe.tcp(&Tcp::to(to).bind(at("127.0.0.5:0"))).unwrap();
    assert_eq!(bound.local.ip(), at("127.0.0.5:0").ip());
    let mapped = probe.tcp(&Tcp::to(to).mapped()).unwrap();
    assert_eq!(mapped.peer, Some(at("[::ffff:10.9.0.1]:80")));
    let silent = probe.tcp(&Tcp::to(to).silent()).unwrap();
    assert_eq!((silent.server(), silent.peer), ("", Some(to)));

    assert_eq!(probe.tcp(&Tcp::to(at("[fd00:10:9::1]:80"))).unwrap().server(), "v6");
    let seen = probe.tcp(&Tcp::to(at("127.0.0.1:8080"))).unwrap().answer.unwrap();
    assert_eq!((seen.server.as_str(), seen.client.ip()), ("dual", at("[::ffff:127.0.0.1]:0").ip()));
}

#[test]
fn mptcp_sockets_are_mptcp_on_both_sides() {
    needs_root!();
    needs!(PathBuf::from("/proc/sys/net/mptcp/enabled").exists(), "MPTCP in the kernel");
    let (_netns, _cgroup, probe) = alone();
    let to = at("10.9.0.1:80");
    let server = probe.serve(&Serve::tcp("mptcp", to).mptcp()).unwrap();
    assert_eq!(server.local, to);
    let kept = probe.open_tcp(&Tcp::to(to).mptcp()).unwrap();
    assert_eq!(kept.peer, Some(to));
    assert_eq!(probe.exchange(kept.handle, "a").unwrap().answer.server, "mptcp");
    // The protocol column of /proc/net/protocols counts sockets: a listener and both ends.
    let protocols = fs::read_to_string(format!("/proc/{}/net/protocols", probe.id())).unwrap();
    let mptcp = protocols.lines().find(|line| line.starts_with("MPTCP ")).unwrap();
    assert_eq!(mptcp.split_whitespace().nth(2), Some("3"), "{mptcp}");

    let net = Topology::single().unwrap();
    let client = net.node(1).probe("client").unwrap();
    let error = client.tcp(&Tcp::to(at("10.0.0.100:80")).mptcp().timeout(SHORT)).unwrap_err();
    assert_eq!((error.step(), error.errno()), (Some(Step::Connect), "TIMEOUT"));
}

#[test]
fn a_kept_udp_socket_speaks_to_several_servers() {
    needs_root!();
    let (_netns, _cgroup, probe) = alone();
    let (one, two) = (at("10.9.0.1:53"), at("127.0.0.2:53"));
    probe.serve(&Serve::udp("one", one)).unwrap();
    probe.serve(&Serve::udp("two", two)).unwrap();

    for receiver in [Receiver::RecvFrom, Receiver::RecvMsg] {
        let kept = probe.open_udp(&Udp::to(one).receiver(receiver)).unwrap();
        assert_eq!(kept.peer, None);
        for text in ["a", "b", "c"] {
            let received = probe.exchange(kept.handle, text).unwrap();
            assert_eq!((received.from, received.answer.server.as_str()), (Some(one), "one"));
            assert_eq!(received.answer.text, text);
        }
        let received = probe.exchange_with(kept.handle, two, "d").unwrap();
        assert_eq!((received.from, received.answer.server.as_str()), (Some(two), "two"));
        let ports = [probe.names(kept.handle).unwrap().local.port(), received.answer.client.port()];
        assert_eq!(ports[0], ports[1]);
        probe.close(kept.handle).unwrap();
        assert_eq!(probe.exchange(kept.handle, "e").unwrap_err().step(), Some(Step::Request));
    }

    let connected = probe.open_udp(&Udp::connected(one).receiver(Receiver::Recv)).unwrap();
    assert_eq!(connected.peer, Some(one));
    let received = probe.exchange(connected.handle, "f").unwrap();
    assert_eq!((received.from, received.answer.server.as_str()), (None, "one"));
    assert_eq!(probe.reconnect(connected.handle, two).unwrap().peer, Some(two));
    assert_eq!(probe.exchange(connected.handle, "g").unwrap().answer.server, "two");

    let late = probe.open_udp(&Udp::to(one)).unwrap();
    assert_eq!(probe.exchange(late.handle, "g").unwrap().answer.server, "one");
    probe.reconnect(late.handle, two).unwrap();
    assert_eq!(probe.exchange(late.handle, "g").unwrap().answer.server, "two");

    let mapped = probe.udp(&Udp::to(one).mapped()).unwrap();
    assert_eq!(mapped.from, Some(at("[::ffff:10.9.0.1]:53")));
    // The kernel takes a mapped sendto() on a mapped socket only if the address is mapped too, which the
    // probe sees to.
    let kept = probe.open_udp(&Udp::to(one).mapped()).unwrap();
    assert_eq!(probe.exchange_with(kept.handle, two, "h").unwrap().answer.server, "two");
}

#[test]
fn a_held_connection_lives_until_its_server_stops() {
    needs_root!();
    let (_netns, _cgroup, probe) = alone();
    let to = at("10.9.0.1:80");
    let server = probe.serve(&Serve::tcp("server", to)).unwrap();
    let kept = probe.open_tcp(&Tcp::to(to)).unwrap();
    let other = probe.open_tcp(&Tcp::to(to).nonblocking()).unwrap();
    for text in ["a", "b"] {
        assert_eq!(probe.exchange(kept.handle, text).unwrap().answer.text, text);
        assert_eq!(probe.exchange(other.handle, text).unwrap().answer.text, text);
    }
    let quiet = probe.open_tcp(&Tcp::to(to).timeout(SHORT)).unwrap();
    assert_eq!(probe.receive(quiet.handle).unwrap_err().errno(), "TIMEOUT");

    probe.close(server.handle).unwrap();
    assert_eq!(probe.receive(kept.handle).unwrap_err().errno(), "EOF");
    assert_eq!(probe.tcp(&Tcp::to(to)).unwrap_err().errno(), "ECONNREFUSED");
    probe.serve(&Serve::tcp("again", to)).unwrap();
    assert_eq!(probe.tcp(&Tcp::to(to)).unwrap().server(), "again");
}

#[test]
fn a_load_counts_answers_by_server_and_failures_by_step() {
    needs_root!();
    let (_netns, _cgroup, probe) = alone();
    let to = at("10.9.0.1:80");
    let server = probe.serve(&Serve::tcp("server", to)).unwrap();

    let tally = probe.run(&Many::times(500, Tcp::to(to).reset()).threads(4)).unwrap();
    assert_eq!((tally.from("server"), tally.successes(), tally.failures()), (500, 500, 0), "{tally:?}");
    assert_eq!(tally.peers.get("10.9.0.1:80"), Some(&500));
    assert!(tally.is_done);

    let load = probe.begin(&Many::during(Duration::from_secs(30), Tcp::to(to).reset())).unwrap();
    wait_until("some answers", SOON, || probe.tally(load).unwrap().successes() > 10).unwrap();
    probe.close(server.handle).unwrap();
    wait_until("some failures", SOON, || probe.tally(load).unwrap().failures() > 10).unwrap();
    let tally = probe.finish(load).unwrap();
    assert!(tally.failed.contains_key("connect ECONNREFUSED"), "{tally:?}");
    assert!(tally.is_done && tally.elapsed_ms < 20_000, "{tally:?}");
    assert!(!tally.first_failures.is_empty());
    assert_eq!(probe.tally(load).unwrap_err().step(), Some(Step::Request));

    probe.serve(&Serve::udp("datagrams", to)).unwrap();
    let pause = Duration::from_millis(20);
    let timed = Many::during(Duration::from_millis(200), Udp::to(to)).pause(pause);
    let tally = probe.run(&timed).unwrap();
    assert!((1..=10).contains(&tally.from("datagrams")), "{tally:?}");
    assert_eq!((tally.failures(), tally.peers.len()), (0, 1), "{tally:?}");
}

#[test]
fn a_survey_sees_every_server_and_every_kind_of_failure() {
    needs_root!();
    let net = Topology::single().unwrap();
    let probe = net.node(1).probe("probe").unwrap();
    probe.serve(&Serve::tcp("one", at("127.0.0.1:7001"))).unwrap();
    probe.serve(&Serve::udp("two", at("127.0.0.1:7001"))).unwrap();
    let look = |attempt: Attempt, times| Look { attempt, times, failures: 1 };
    let looks = vec![
        look(Tcp::to(at("127.0.0.1:7001")).into(), 3),
        look(Udp::to(at("127.0.0.1:7001")).mapped().into(), 2),
        look(Udp::connected(at("127.0.0.1:7002")).into(), 5),
        // Nobody is behind the default route.
        look(Tcp::to(at("10.0.0.1:80")).nonblocking().timeout(SHORT).into(), 5),
    ];
    let seen = probe.survey(&Survey { looks, threads: 4 }).unwrap();
    assert_eq!(seen[0].answered, [("one".to_owned(), 3)].into());
    assert_eq!(seen[0].peers, [at("127.0.0.1:7001")].into());
    assert_eq!(seen[1].answered, [("two".to_owned(), 2)].into());
    assert_eq!(seen[1].sources["two"], ["127.0.0.1".parse().unwrap()].into());
    assert_eq!(seen[2].failed, [("ECONNREFUSED".to_owned(), 1)].into());
    assert_eq!(seen[3].failed, [("TIMEOUT".to_owned(), 1)].into());
}

#[test]
fn a_load_without_bounds_is_refused() {
    needs_root!();
    let (_netns, _cgroup, probe) = alone();
    for many in [
        Many::times(Many::MAX_COUNT + 1, Tcp::to(at("127.0.0.1:1"))),
        Many::during(Many::MAX_TIME * 2, Tcp::to(at("127.0.0.1:1"))),
        Many::times(1, Tcp::to(at("127.0.0.1:1"))).threads(Many::MAX_THREADS + 1),
    ] {
        assert_eq!(probe.begin(&many).unwrap_err().step(), Some(Step::Request), "{many:?}");
    }
}

#[test]
fn a_probe_is_in_its_namespace_and_cgroup() {
    needs_root!();
    let net = Topology::single().unwrap();
    let pod = net.node(1).add_pod("pod", [10, 1, 0, 1].into()).unwrap();
    let (host, inside) = (net.node(1).probe("host").unwrap(), pod.probe("inside").unwrap());

    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let named = |netns: &Netns| netns.run(|| fs::read_link("/proc/thread-self/ns/net").unwrap());
    assert_eq!(namespace(host.id()), named(&net.node(1).netns));
    assert_eq!(namespace(inside.id()), named(&pod.netns));
    assert_ne!(namespace(host.id()), namespace(inside.id()));

    assert_eq!(pod.cgroup.processes(), [inside.id()]);
    let mut on_node = net.node(1).cgroup.processes();
    on_node.sort_unstable();
    let mut expected = vec![host.id(), inside.id()];
    expected.sort_unstable();
    assert_eq!(on_node, expected, "a pod's cgroup is below its node's");
    assert!(pod.cgroup.path().starts_with(net.node(1).cgroup.path()));
    assert_ne!(net.node(1).cgroup.path().parent().unwrap().join(""), PathBuf::from("/"));
}

#[test]
fn a_probe_knows_the_cookie_of_its_namespace() {
    needs_root!();
    let net = Topology::single().unwrap();
    let (one, two) = (net.node(1).probe("one").unwrap(), net.node(1).probe("two").unwrap());
    let cookie = one.netns_cookie();
    needs!(
        !cookie.as_ref().is_err_and(|error| error.errno() == "ENOPROTOOPT"),
        "Linux 5.14 (SO_NETNS_COOKIE)"
    );
    let pod = net.node(1).add_pod("pod", [10, 1, 0, 1].into()).unwrap();
    assert_eq!(cookie.unwrap(), two.netns_cookie().unwrap());
    assert_ne!(one.netns_cookie().unwrap(), pod.probe("pod").unwrap().netns_cookie().unwrap());
}

#[test]
fn a_lost_probe_is_an_error_and_not_a_hang() {
    needs_root!();
    let (_netns, _cgroup, probe) = alone();
    probe.serve(&Serve::tcp("server", at("10.9.0.1:80"))).unwrap();
    probe.kill().unwrap();
    assert_eq!(probe.netns_cookie().unwrap_err().errno(), "LOST");
}

/// Everything that one of each kind of object leaves in the world.
struct Traces {
    netns: PathBuf,
    cgroup: PathBuf,
    bpffs: PathBuf,
    probe: u32,
}

impl Traces {
    fn are_there(&self) -> [bool; 4] {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        [
            self.netns.is_symlink(),
            self.cgroup.exists(),
            self.bpffs.exists() || mounts.contains(self.bpffs.to_str().unwrap()),
            PathBuf::from(format!("/proc/{}", self.probe)).exists(),
        ]
    }
}

#[test]
fn a_panic_leaves_nothing_behind() {
    needs_root!();
    let (mut traces, mut unheld) = (None, None);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let (netns, cgroup, probe) = alone();
        let bpffs = Bpffs::new("alone").unwrap();
        let inner = cgroup.child("inner").unwrap();
        // A process that nobody holds, with one of its own: only the cgroup knows them.
        let mut command = Command::new("sh");
        unheld = Some(command.args(["-c", "sleep 60 & wait"]).in_cgroup(&inner).spawn().unwrap());
        wait_until("sh and sleep", SOON, || inner.processes().len() == 2).unwrap();
        let seen = Traces {
            netns: netns.path(),
            cgroup: cgroup.path().to_owned(),
            bpffs: bpffs.path().to_owned(),
            probe: probe.id(),
        };
        assert_eq!(seen.are_there(), [true; 4]);
        traces = Some(seen);
        panic!("this panic is part of the test");
    }));
    assert!(panicked.is_err());
    assert_eq!(traces.unwrap().are_there(), [false; 4]);
    assert_eq!(unheld.unwrap().wait().unwrap().signal(), Some(9));
}

/// A cgroup is not emptied of a process that somebody else put there.
#[test]
fn a_stranger_in_a_cgroup_is_not_killed() {
    needs_root!();
    let cgroup = Cgroup::new("stranger").unwrap();
    let mut stranger = Process::start("stranger", Command::new("sleep").arg("60")).unwrap();
    fs::write(cgroup.path().join("cgroup.procs"), stranger.id().to_string()).unwrap();
    let error = cgroup.kill_all().unwrap_err().to_string();
    assert!(error.contains(&stranger.id().to_string()), "{error}");
    assert!(stranger.is_running());
    stranger.kill().unwrap();
}

/// What a killed run leaves, made by hand under the name of a process that cannot exist.
#[test]
fn the_next_run_removes_what_a_killed_run_left() {
    needs_root!();
    let dead = format!("lbt-{}-1-dead", u32::MAX);
    let folders = [PathBuf::from("/run/netns"), cgroup::mount().unwrap(), std::env::temp_dir()]
        .map(|it| it.join(&dead));
    fs::create_dir_all("/run/netns").unwrap();
    std::os::unix::fs::symlink("/proc/0/fd/0", &folders[0]).unwrap();
    fs::create_dir_all(folders[1].join("inner")).unwrap();
    fs::create_dir(&folders[2]).unwrap();
    let home = folders[2].with_extension("home");
    fs::create_dir_all(home.join("manifests")).unwrap();

    // A process sweeps once, before its first name, and this one may have done so.
    let own = std::env::current_exe().unwrap();
    let test = "a_probe_is_in_its_namespace_and_cgroup";
    assert!(Command::new(own).args(["--exact", test]).output().unwrap().status.success());
    for folder in folders.into_iter().chain([home]) {
        assert!(folder.symlink_metadata().is_err(), "{} is still there", folder.display());
    }
}

#[test]
fn topologies_do_not_disturb_each_other() {
    needs_root!();
    thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || {
                let name = format!("server-{number}");
                let net = Topology::pair().unwrap();
                let pod = net.node(2).add_pod("pod", [10, 2, 0, 1].into()).unwrap();
                let server = pod.probe("server").unwrap();
                server.serve(&Serve::tcp(&name, at("10.2.0.1:80"))).unwrap();
                let client = net.node(1).probe("client").unwrap();
                let tally = client.run(&Many::times(200, Tcp::to(at("10.2.0.1:80")).reset())).unwrap();
                assert_eq!(tally.from(&name), 200, "{tally:?}");
            });
        }
    });
}

#[test]
fn a_wrong_line_of_ip_is_named() {
    needs_root!();
    let netns = Netns::new("wrong").unwrap();
    let error = netns.ip("link set lo up\naddr add 10.0.0.1/8 dev eth9").unwrap_err().to_string();
    assert!(error.contains("eth9") && error.contains("2  addr add"), "{error}");
}

/// Programs beside the running one are found, and a missing one is named.
#[test]
fn binaries_are_found_beside_the_running_one() {
    let probe = lb_tests::binary("lb-probe").unwrap();
    assert_eq!(probe, PathBuf::from(env!("CARGO_BIN_EXE_lb-probe")).canonicalize().unwrap());
    let error = lb_tests::binary("lb-nothing").unwrap_err().to_string();
    assert!(error.contains("cargo build --bin lb-nothing"), "{error}");
}

/// As an ordinary user, a privileged test says that it did not run.
#[test]
fn without_root_a_test_says_that_it_did_not_run() {
    needs_root!();
    let own = std::env::current_exe().unwrap();
    let output =
        Command::new(own).args(["--exact", "a_wrong_line_of_ip_is_named"]).uid(65534).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors, "NOT RUN: a_wrong_line_of_ip_is_named: needs root\n");
    assert!(output.status.success());
}
