//! A Service without endpoints: who is told what, and when (NE-1, NE-7).

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use lb_tests::probe::{FastOpen, Handle, ProbeError, Serve, Step, Tcp, Udp};
use lb_tests::{Agent, Probe, needs, needs_root, wait_for, wait_until};
use serde_json::json;

use crate::connects::has_mptcp;
use crate::park::{
    FORMS, KINDS, LOOPBACK, NODE_PORTS, Park, SHORT, SOON, Socket, as_mapped, cluster_ips, everywhere,
    none_of, objects,
};

/// Before the kernel repeats a SYN (1 s): nobody waited for an answer that did not come.
const AT_ONCE: Duration = Duration::from_millis(900);

/// For an answer that does not come, after everybody who could have sent it is known not to have been asked.
const SILENCE: Duration = Duration::from_millis(20);

/// Refused connects of which one, at least, is to be refused [`AT_ONCE`], however slow the machine is at times.
const TRIES: usize = 20;

/// Who says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The hook, with bpf_set_retval.
    Hook,
    /// A loopback address that nobody listens at.
    Address,
}

impl By {
    fn flag(self) -> [&'static str; 2] {
        ["--refuse-by", if self == Self::Hook { "hook" } else { "address" }]
    }
}

fn hooks_can_refuse() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval).unwrap_or(false)
}

/// NE-1, NE-4: for pods and for the host.
#[test]
fn a_service_without_endpoints_refuses_by_hook() {
    needs_root!();
    needs!(hooks_can_refuse(), "bpf_set_retval (kernel 5.18)");
    refuses(By::Hook);
}

/// NE-1, NE-4, NE-7.
#[test]
fn a_service_without_endpoints_refuses_by_address() {
    needs_root!();
    refuses(By::Address);
}

/// NE-1, NE-7.
#[test]
fn a_socket_that_is_bound_to_a_device_is_refused_by_hook() {
    needs_root!();
    needs!(hooks_can_refuse(), "bpf_set_retval (kernel 5.18)");
    refuses_bound_to_a_device(By::Hook);
}

/// NE-1: as below kernel 5.18, where a hook cannot choose the error.
#[test]
fn a_socket_that_is_bound_to_a_device_is_refused_without_bpf_set_retval() {
    needs_root!();
    refuses_bound_to_a_device(By::Address);
}

#[test]
fn a_service_that_gets_endpoints_stops_refusing() {
    needs_root!();
    let mut park = Park::new("endpoints");
    park.serve(1);
    park.program(1, &[]);
    park.start(&By::Address.flag());
    let to = SocketAddr::new(cluster_ips(1)[0], 53);
    let unconnected = park.pod.open_udp(&Udp::to(to)).unwrap();
    send_to_nobody(&park.pod, unconnected.handle, to, "too early").unwrap();

    park.program_and_wait(1, &[1]);
    let again = park.pod.exchange(unconnected.handle, "now").unwrap();
    assert_eq!((again.from, again.answer.server.as_str()), (Some(to), "backend-1"));
    assert_eq!(again.answer.text, "now", "nobody has answered before");
    let fresh = park.pod.open_udp(&Udp::connected(to)).unwrap();
    assert_eq!(fresh.peer, Some(to));
    let again = park.pod.exchange(fresh.handle, "now").unwrap();
    assert_eq!((again.from, again.answer.server.as_str()), (Some(to), "backend-1"));
    let stream = SocketAddr::new(cluster_ips(1)[0], 80);
    assert_eq!(park.pod.tcp(&Tcp::to(stream)).unwrap().server(), "backend-1");

    park.program(1, &[]);
    wait_for("the Service to refuse again", SOON, || match park.pod.tcp(&Tcp::to(stream)) {
        Err(error) if error.errno() == "ECONNREFUSED" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
}

/// design.md 3: a connected UDP socket that was refused is freed when its Service gets endpoints, and no other one is.
#[test]
fn connected_udp_that_was_refused_can_connect_when_there_are_endpoints() {
    needs_root!();
    let mut park = Park::new("freed");
    park.serve(1);
    park.serve(3);
    park.program(1, &[]);
    park.program(2, &[]);
    park.program(3, &[3]);
    park.start(&[]);
    let open = |service: u8, family: usize, mapped: bool, host: bool| {
        let to = SocketAddr::new(cluster_ips(service)[family], 53);
        let probe = if host { &park.host } else { &park.pod };
        let udp = Udp::connected(to);
        let opened = probe.open_udp(&if mapped { udp.mapped() } else { udp }).unwrap();
        Refused { probe, socket: opened.handle, to }
    };
    let cells = [(0, false, false), (1, false, false), (0, true, false), (0, false, true), (1, false, true)];
    let refused: Vec<_> =
        cells.iter().map(|(family, mapped, host)| open(1, *family, *mapped, *host)).collect();
    let still = open(2, 0, false, false);
    let served = open(3, 1, false, false);
    for socket in refused.iter().chain([&still]) {
        assert_eq!(socket.says("too early"), "ECONNREFUSED");
    }
    assert_eq!(served.says("hello"), "backend-3");

    park.program_and_wait(1, &[1]);
    for (cell, socket) in cells.iter().zip(&refused) {
        assert_eq!(socket.connects_again(), "backend-1", "{cell:?}");
    }
    assert_eq!(still.says("still?"), "ECONNREFUSED", "its Service has no endpoints yet");
    assert_eq!(served.says("hello"), "backend-3", "nothing was wrong with it");
}

/// No Service gets its first endpoint here: one gets an address, and another policy. While all its endpoints are on other
/// nodes and its policy is Local, nobody answers (NE-2), but at external addresses (2.8-node).
#[test]
fn connected_udp_is_freed_when_its_address_or_the_policy_changes() {
    needs_root!();
    let mut park = Park::new("changes");
    park.serve(1);
    let [own, others, own_v6]: [IpAddr; 3] =
        ["198.51.100.7", "198.51.100.8", "2001:db8::7"].map(|addr| addr.parse().unwrap());
    let program = |park: &Park, n: u8, backends: &[u8], external: &[IpAddr], policy: &str| {
        let mut objects = objects(n, backends);
        objects[0]["spec"]["externalIPs"] = json!(external);
        objects[0]["spec"]["internalTrafficPolicy"] = json!(policy);
        // Both families have an external address and this policy, so both runs are used all the time, and the internal
        // policy is a flag and nothing else.
        objects[0]["spec"]["externalTrafficPolicy"] = json!("Local");
        park.home.apply(&format!("service-{n}"), &objects).unwrap();
    };
    // The endpoint is on the other node: clients of the ClusterIP get no answer, those of the external address do.
    program(&park, 1, &[1], &[own, own_v6], "Local");
    program(&park, 2, &[], &[others], "Cluster");
    park.start(&[]);
    let open = |addr| {
        let to = SocketAddr::new(addr, 53);
        Refused { probe: &park.pod, socket: park.pod.open_udp(&Udp::connected(to)).unwrap().handle, to }
    };
    let [local, moving, served] = [cluster_ips(1)[0], others, own].map(open);
    assert_eq!([&local, &moving].map(|socket| socket.says("too early")), ["TIMEOUT", "ECONNREFUSED"]);
    assert_eq!(served.says("hello"), "backend-1");

    // Of two Services of one age the one with the smaller name has an address that both claim.
    program(&park, 1, &[1], &[own, own_v6, others], "Local");
    assert_eq!(moving.connects_again(), "backend-1");
    assert_eq!(local.says("still?"), "TIMEOUT");

    program(&park, 1, &[1], &[own, own_v6, others], "Cluster");
    assert_eq!(local.connects_again(), "backend-1");
    assert_eq!(served.says("hello"), "backend-1", "nothing was wrong with it");
}

/// NE-1: an unused port of a cluster IP at the number of a NodePort is nobody's, however often it is looked at.
#[test]
fn connected_udp_that_would_be_refused_again_is_not_freed() {
    needs_root!();
    let mut park = Park::new("again");
    park.serve(1);
    park.home.apply("service-1", &everywhere(&[1])).unwrap();
    park.program(2, &[1]);
    park.start(&[]);
    let [_, node_port] = NODE_PORTS;
    let to = SocketAddr::new(cluster_ips(2)[0], node_port);
    let refused =
        Refused { probe: &park.pod, socket: park.pod.open_udp(&Udp::connected(to)).unwrap().handle, to };
    assert_eq!(refused.says("hello"), "ECONNREFUSED");
    let looks = || park.home.log().matches("looked for UDP sockets that lead nowhere").count();
    let before = looks();
    // Somebody gets its first endpoint.
    park.program(3, &[1]);
    wait_until("another look", SOON, || looks() > before).unwrap();
    assert_eq!(refused.says("still?"), "ECONNREFUSED");
}

/// Nothing is written when the agent comes back: what it did not get done before is done all the same.
#[test]
fn connected_udp_that_was_refused_is_freed_by_a_start_that_finds_nothing_to_write() {
    needs_root!();
    let mut park = Park::new("start");
    park.program(1, &[]);
    park.program(2, &[]);
    park.start(&[]);
    // That of this start must not be the one that frees the socket.
    let has_healed = || park.home.log().contains("looked for UDP sockets that lead nowhere");
    wait_until("the first look for refused sockets", SOON, has_healed).unwrap();
    let [kept, gone] = [1, 2].map(|n| {
        let to = SocketAddr::new(cluster_ips(n)[0], 53);
        Refused { probe: &park.pod, socket: park.pod.open_udp(&Udp::connected(to)).unwrap().handle, to }
    });
    assert_eq!([&kept, &gone].map(|socket| socket.says("too early")), ["ECONNREFUSED"; 2]);
    // An address that is no Service's any more would not refuse. Nobody has endpoints, so nothing asks for healing.
    park.home.remove("service-2").unwrap();
    wait_for("the Service to be gone", SOON, || match park.pod.udp(&Udp::to(gone.to).timeout(SHORT)) {
        Err(error) if error.errno() == "ECONNREFUSED" => Err("it refuses".to_owned()),
        _ => Ok(()),
    })
    .unwrap();
    assert_eq!(gone.says("still?"), "ECONNREFUSED");
    park.agent.take().unwrap().crash().unwrap();
    park.agent = Some(Agent::start(park.net.node(1), &park.home).unwrap());
    wait_for("the socket to be freed", SOON, || match gone.says("and now?").as_str() {
        "ECONNREFUSED" => Err("it is refused".to_owned()),
        _ => Ok(()),
    })
    .unwrap();
    assert_eq!(kept.says("still?"), "ECONNREFUSED", "its Service has no endpoints yet");
}

/// A connected UDP socket, and where its application wanted to connect it.
struct Refused<'a> {
    probe: &'a Probe,
    socket: Handle,
    to: SocketAddr,
}

impl Refused<'_> {
    /// Who answers, or the error.
    fn says(&self, text: &str) -> String {
        match self.probe.exchange(self.socket, text) {
            Ok(received) => received.answer.server,
            Err(error) => error.errno().to_owned(),
        }
    }

    /// Waits until the socket is freed, connects it again, and says who answers.
    fn connects_again(&self) -> String {
        wait_for("the socket to be freed", SOON, || match self.says("and now?").as_str() {
            "ECONNREFUSED" | "TIMEOUT" => Err(format!("{} does not answer", self.to)),
            "ECONNABORTED" | "EDESTADDRREQ" => Ok(()),
            errno => panic!("{}: {errno}", self.to),
        })
        .unwrap();
        let again = self.probe.reconnect(self.socket, self.to).unwrap();
        assert_eq!(again.peer.map(|peer| peer.port()), Some(self.to.port()));
        let answer = self.says("now");
        // send() without a peer leaves the socket's pending error where it is: it is heard once, later.
        if answer == "ECONNABORTED" { self.says("now then") } else { answer }
    }
}

/// Every socket, form and kind of frontend, from a pod and from the host, beside a Service that has endpoints.
fn refuses(by: By) {
    let mut park = Park::new("refusal");
    park.serve(2);
    park.home.apply("service-1", &everywhere(&[])).unwrap();
    park.home.apply("service-2", &objects(2, &[2])).unwrap();
    park.start(&by.flag());
    let pod: [IpAddr; 2] = [park.client.ipv4.into(), park.client.ipv6.into()];
    let host: [IpAddr; 2] = [park.net.node(1).ipv4.into(), park.net.node(1).ipv6.into()];
    let mut wrong = Vec::new();
    // Whoever is not translated on loopback meets the host's own servers.
    for addr in LOOPBACK.map(|addr| addr.parse::<IpAddr>().unwrap()) {
        park.host.serve(&Serve::tcp("own", (addr, NODE_PORTS[0]).into())).unwrap();
        park.host.serve(&Serve::udp("own", (addr, NODE_PORTS[1]).into())).unwrap();
    }
    let on_loopback = ("NodePort on loopback", LOOPBACK, NODE_PORTS);
    for (client, probe, own, further) in
        [("pod", &park.pod, pod, None), ("host", &park.host, host, Some(on_loopback))]
    {
        for (kind, addresses, ports) in KINDS.into_iter().chain(further) {
            for (form, family, mapped) in FORMS {
                let cell = format!("{client}, {kind}, {form}");
                let to =
                    |socket: Socket| SocketAddr::new(addresses[family].parse().unwrap(), socket.port(ports));
                let source = SocketAddr::new(own[family], 0);
                wrong.extend(wrong_tcp(probe, &cell, (to(Socket::Tcp), mapped), source));
                let to = to(Socket::UdpConnected);
                wrong.extend(
                    wrong_connected(probe, to, mapped).map(|it| format!("{cell}, connected UDP: {it}")),
                );
                wrong.extend(wrong_sendto(probe, to, mapped, by).map(|it| format!("{cell}, sendto: {it}")));
            }
        }
    }
    let soonest = (0..TRIES).map(|_| refused_within(&park.pod, SocketAddr::new(cluster_ips(1)[0], 80))).min();
    assert!(soonest < Some(AT_ONCE), "refused after {soonest:?} at the soonest");
    let other = SocketAddr::new(cluster_ips(2)[0], 80);
    assert_eq!(park.pod.tcp(&Tcp::to(other)).unwrap().server(), "backend-2");
    none_of(&wrong);
}

/// What such a socket sends to the loopback address leaves by its device, and nobody answers: the system call that asks
/// for the Service has to fail, of connected UDP too.
fn refuses_bound_to_a_device(by: By) {
    let mut park = Park::new("device");
    park.serve(2);
    park.program(1, &[]);
    park.program(2, &[2]);
    park.start(&by.flag());
    let errno = if by == By::Hook { "ECONNREFUSED" } else { "EPERM" };
    let mut wrong = Vec::new();
    for (client, probe) in [("pod", &park.pod), ("host", &park.host)] {
        for (form, family, mapped) in FORMS {
            let [to, other] = [1, 2].map(|n| SocketAddr::new(cluster_ips(n)[family], 53));
            let tcp = || Tcp::to((to.ip(), 80).into()).device("eth0").timeout(AT_ONCE);
            let tcp = || if mapped { tcp().mapped() } else { tcp() };
            let on_device =
                |udp: Udp| if mapped { udp.mapped() } else { udp }.device("eth0").timeout(AT_ONCE);
            let mut seen = vec![
                ("TCP", probe.tcp(&tcp()).map(drop), Step::Connect),
                ("fast open", probe.tcp(&tcp().fast_open(FastOpen::SendTo)).map(drop), Step::Connect),
                ("connected UDP", probe.open_udp(&on_device(Udp::connected(to))).map(drop), Step::Connect),
                ("sendto", probe.udp(&on_device(Udp::to(to))).map(drop), Step::Send),
            ];
            if has_mptcp() {
                seen.push(("MPTCP", probe.tcp(&tcp().mptcp()).map(drop), Step::Connect));
            }
            // A peer that the socket has already stays its peer.
            let kept = probe.open_udp(&on_device(Udp::connected(other)).timeout(SOON)).unwrap();
            let again = probe.reconnect(kept.handle, if mapped { as_mapped(to) } else { to });
            seen.push(("UDP, connected to another Service", again.map(drop), Step::Connect));
            for (what, result, step) in seen {
                if !result.as_ref().is_err_and(|error| is(error, step, errno)) {
                    wrong.push(format!("{client}, {form}, {what}: {result:?}"));
                }
            }
            if probe.names(kept.handle).unwrap().peer != kept.peer {
                wrong.push(format!("{client}, {form}, UDP: another peer than before"));
            }
            let answer = probe.exchange(kept.handle, "hello").map(|received| received.answer.server);
            if answer.as_ref().is_ok_and(|server| server != "backend-2") || answer.is_err() {
                wrong.push(format!("{client}, {form}, UDP, afterwards: {answer:?}"));
            }
        }
    }
    none_of(&wrong);
}

/// How long a blocking connect() takes that is refused.
fn refused_within(probe: &Probe, to: SocketAddr) -> Duration {
    let begin = Instant::now();
    assert_eq!(probe.tcp(&Tcp::to(to)).unwrap_err().errno(), "ECONNREFUSED");
    begin.elapsed()
}

fn wrong_tcp(probe: &Probe, cell: &str, (to, mapped): (SocketAddr, bool), source: SocketAddr) -> Vec<String> {
    let tcp = || Tcp::to(to);
    let mut ways = vec![
        ("blocking", tcp()),
        ("non-blocking", tcp().nonblocking()),
        ("bound", tcp().bind(source)),
        ("bound, non-blocking", tcp().bind(source).nonblocking()),
        ("fast open", tcp().fast_open(FastOpen::SendTo)),
    ];
    if has_mptcp() {
        ways.push(("MPTCP", tcp().mptcp()));
        ways.push(("MPTCP, non-blocking", tcp().mptcp().nonblocking()));
    }
    let mut wrong = Vec::new();
    for (way, tcp) in ways {
        match probe.tcp(&if mapped { tcp.mapped() } else { tcp }) {
            Err(error) if is(&error, Step::Connect, "ECONNREFUSED") => {}
            other => wrong.push(format!("{cell}, TCP, {way}: {other:?}")),
        }
    }
    wrong
}

/// As under kube-proxy: connecting is no question to anybody, and the answer to the first datagram is the refusal.
fn wrong_connected(probe: &Probe, to: SocketAddr, mapped: bool) -> Option<String> {
    let udp = Udp::connected(to);
    let opened = match probe.open_udp(&if mapped { udp.mapped() } else { udp }) {
        Ok(opened) => opened,
        Err(error) => return Some(error.to_string()),
    };
    let shown = if mapped { as_mapped(to) } else { to };
    if opened.peer != Some(shown) {
        return Some(format!("peer {:?}, expected {shown}", opened.peer));
    }
    match probe.exchange(opened.handle, "anybody?") {
        Err(error) if error.errno() == "ECONNREFUSED" => {}
        other => return Some(format!("{other:?}")),
    }
    // The error was told once; the next datagram is refused again.
    match probe.exchange(opened.handle, "anybody now?") {
        Err(error) if error.errno() == "ECONNREFUSED" => None,
        other => Some(format!("the second time: {other:?}")),
    }
}

/// The hook refuses the datagram; without it, the datagram goes to a port that nobody has, and the sender hears nothing.
fn wrong_sendto(probe: &Probe, to: SocketAddr, mapped: bool, by: By) -> Option<String> {
    let udp = Udp::to(to);
    let udp = if mapped { udp.mapped() } else { udp };
    if by == By::Hook {
        return match probe.udp(&udp) {
            Err(error) if is(&error, Step::Send, "ECONNREFUSED") => None,
            other => Some(format!("{other:?}")),
        };
    }
    let opened = match probe.open_udp(&udp.timeout(SILENCE)) {
        Ok(opened) => opened,
        Err(error) => return Some(error.to_string()),
    };
    if let Err(error) = send_to_nobody(probe, opened.handle, to, "anybody?") {
        return Some(error.to_string());
    }
    match probe.receive(opened.handle) {
        Err(error) if is(&error, Step::Receive, "TIMEOUT") => None,
        other => Some(format!("{other:?}")),
    }
}

/// Sends a datagram and waits until the client's own namespace has counted it as one for which nobody listens.
fn send_to_nobody(probe: &Probe, socket: Handle, to: SocketAddr, text: &str) -> anyhow::Result<()> {
    let before = for_nobody(probe, to);
    probe.send(socket, text)?;
    wait_until("the datagram to be counted as nobody's", SOON, || for_nobody(probe, to) > before)
}

/// Datagrams of the family of `to` that arrived in the namespace of `probe`, and for which nobody listened.
fn for_nobody(probe: &Probe, to: SocketAddr) -> u64 {
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/net/{file}", probe.id())).unwrap();
    if to.is_ipv6() {
        let text = read("snmp6");
        let line = text.lines().find_map(|line| line.strip_prefix("Udp6NoPorts")).unwrap();
        return line.trim().parse().unwrap();
    }
    // A line of names, and one of values.
    let text = read("snmp");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(str::split_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let (_, value) = names.zip(values).find(|(name, _)| *name == "NoPorts").unwrap();
    value.parse().unwrap()
}

fn is(error: &ProbeError, step: Step, errno: &str) -> bool {
    error.step() == Some(step) && error.errno() == errno
}
