//! UDP flows whose backend leaves (2.16): who is gone gets nothing more, who still serves keeps what it has.

use std::net::SocketAddr;

use lb_tests::agent::{pinned, service};
use lb_tests::probe::{Handle, Serve, Tcp, Udp};
use lb_tests::{Agent, Probe, needs_root, wait_for, wait_until};
use serde_json::{Value, json};

use crate::park::{Park, SHORT, SOON, backend, cluster_ips, objects, objects_at};

fn dns(n: u8) -> SocketAddr {
    SocketAddr::new(cluster_ips(n)[0], 53)
}

/// Who answers, or the error.
fn says(probe: &Probe, socket: Handle, text: &str) -> String {
    match probe.exchange(socket, text) {
        Ok(received) => received.answer.server,
        Err(error) => error.errno().to_owned(),
    }
}

/// Waits until a connected socket is freed, connects it again, and says who answers.
fn connects_again(probe: &Probe, socket: Handle, to: SocketAddr) -> String {
    wait_for("the socket to be freed", SOON, || match says(probe, socket, "still there?").as_str() {
        "ECONNABORTED" | "EDESTADDRREQ" => Ok(()),
        other => Err(other.to_owned()),
    })
    .unwrap();
    probe.reconnect(socket, to).unwrap();
    // The error of the freed socket may still wait to be heard once.
    let answer = says(probe, socket, "again");
    if answer == "ECONNABORTED" { says(probe, socket, "and again") } else { answer }
}

/// Makes the endpoint of backend `n` terminate, and serve still.
fn terminate(objects: &mut [Value], n: u8) {
    let addresses = backend(n).map(|addr| addr.to_string());
    for slice in &mut objects[1..] {
        for endpoint in slice["endpoints"].as_array_mut().unwrap() {
            if addresses.iter().any(|addr| endpoint["addresses"][0] == addr.as_str()) {
                endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
            }
        }
    }
}

fn wait_for_new_sockets(park: &Park, server: &str) {
    wait_for("new sockets", SOON, || {
        let met: Vec<String> = (0..16)
            .map(|_| match park.pod.udp(&Udp::to(dns(1)).timeout(SHORT)) {
                Ok(reached) => reached.server().to_owned(),
                Err(error) => error.to_string(),
            })
            .collect();
        if met.iter().all(|name| name == server) { Ok(()) } else { Err(format!("{met:?}")) }
    })
    .unwrap();
}

/// CT-4, CT-5, CT-9: a connected socket cannot be sent elsewhere by a hook, so it is freed. TCP is not touched (CT-6).
#[test]
fn a_connected_socket_is_freed_when_its_backend_is_gone() {
    needs_root!();
    for client in ["pod", "host"] {
        let mut park = Park::new("gone");
        park.serve(1);
        park.serve(2);
        park.program(1, &[1]);
        park.start(&[]);
        let probe = if client == "pod" { &park.pod } else { &park.host };
        let socket = probe.open_udp(&Udp::connected(dns(1))).unwrap().handle;
        let stream = probe.open_tcp(&Tcp::to(SocketAddr::new(cluster_ips(1)[0], 80))).unwrap().handle;
        assert_eq!(says(probe, socket, "hello"), "backend-1");
        park.program(1, &[2]);
        assert_eq!(connects_again(probe, socket, dns(1)), "backend-2", "{client}");
        assert_eq!(
            says(probe, stream, "hello"),
            "backend-1",
            "an established connection is its own business"
        );
    }
}

/// CT-3, CT-9: never one that our hooks have not sent there, never one that is fine.
#[test]
fn other_sockets_are_left_alone() {
    needs_root!();
    let mut park = Park::new("others");
    for n in [1, 2] {
        park.serve(n);
    }
    park.program(1, &[1, 2]);
    park.program(2, &[2]);
    park.start(&[]);
    // Straight to the backend, by its own address.
    let own = SocketAddr::new(backend(1)[0], 5353);
    let straight = park.pod.open_udp(&Udp::connected(own)).unwrap().handle;
    let other = park.pod.open_udp(&Udp::connected(dns(2))).unwrap().handle;
    let ours: Vec<Handle> =
        (0..8).map(|_| park.pod.open_udp(&Udp::connected(dns(1))).unwrap().handle).collect();
    let before: Vec<String> = ours.iter().map(|socket| says(&park.pod, *socket, "hello")).collect();
    park.program(1, &[2]);
    for (socket, server) in ours.iter().zip(&before) {
        if server == "backend-1" {
            assert_eq!(connects_again(&park.pod, *socket, dns(1)), "backend-2");
        }
    }
    for (socket, server) in ours.iter().zip(&before).filter(|(_, server)| *server == "backend-2") {
        assert_eq!(says(&park.pod, *socket, "still"), *server);
    }
    assert_eq!([straight, other].map(|socket| says(&park.pod, socket, "still")), ["backend-1", "backend-2"]);
}

/// CT-4: flows stay with a backend that terminates and serves, over a restart of the agent too, and end with it.
#[test]
fn flows_stay_with_a_backend_while_it_serves() {
    needs_root!();
    let mut park = Park::new("drains");
    let servers = park.serve(1);
    park.serve(2);
    park.program(1, &[1]);
    park.start(&[]);
    let connected = park.pod.open_udp(&Udp::connected(dns(1))).unwrap().handle;
    let unconnected = park.pod.open_udp(&Udp::to(dns(1))).unwrap().handle;
    let both = |text: &str| [connected, unconnected].map(|socket| says(&park.pod, socket, text));
    assert_eq!(both("hello"), ["backend-1"; 2]);

    let mut objects = objects(1, &[1, 2]);
    terminate(&mut objects, 1);
    park.home.apply("service-1", &objects).unwrap();
    wait_for_new_sockets(&park, "backend-2");
    assert_eq!(both("while it terminates"), ["backend-1"; 2]);
    park.agent.take().unwrap().crash().unwrap();
    park.agent = Some(Agent::start(park.net.node(1), &park.home).unwrap());
    wait_until("the look after the start", SOON, || {
        park.home.log().matches("looked for UDP sockets that lead nowhere").count() >= 2
    })
    .unwrap();
    assert_eq!(both("after a restart"), ["backend-1"; 2]);

    park.program(1, &[2]);
    wait_for("the flow to move", SOON, || match says(&park.pod, unconnected, "gone?") {
        server if server == "backend-2" => Ok(()),
        other => Err(other),
    })
    .unwrap();
    assert_eq!(connects_again(&park.pod, connected, dns(1)), "backend-2");
    drop(servers);
}

/// How often has been looked for sockets that lead nowhere.
fn looks(park: &Park) -> usize {
    park.home.log().matches("looked for UDP sockets that lead nowhere").count()
}

fn wait_for_another_look(park: &Park, before: usize) {
    wait_until("another look for sockets that lead nowhere", SOON, || looks(park) > before).unwrap();
}

/// CT-4: also a backend that leaves together with what makes the maps grow.
#[test]
fn a_backend_that_leaves_while_the_maps_grow_is_gone_all_the_same() {
    needs_root!();
    let mut park = Park::new("grows");
    park.serve(1);
    park.serve(2);
    park.program(1, &[1]);
    park.start(&[]);
    let socket = park.pod.open_udp(&Udp::connected(dns(1))).unwrap().handle;
    assert_eq!(says(&park.pod, socket, "hello"), "backend-1");
    // More Services than a map of the smallest size holds.
    let many = (0..4200_u16).map(|n| {
        let [high, low] = n.to_be_bytes();
        service(&format!("many-{n}"), &[&format!("10.1.{high}.{low}")], &[("datagram", "UDP", 53)])
    });
    park.home.apply("service-1", &objects(1, &[2]).into_iter().chain(many).collect::<Vec<_>>()).unwrap();
    assert_eq!(connects_again(&park.pod, socket, dns(1)), "backend-2");
    assert!(park.home.log().contains("growing the maps"), "{}", park.home.log());
}

/// CT-4: ids of maps that were made anew mean something else, addresses do not.
#[test]
fn a_lost_pin_frees_nobody_whose_backend_serves() {
    needs_root!();
    let mut park = Park::new("pin");
    park.serve(1);
    park.serve(2);
    park.program(1, &[1]);
    park.program(2, &[2]);
    park.start(&[]);
    let [kept, lost] = [1, 2].map(|n| park.pod.open_udp(&Udp::connected(dns(n))).unwrap().handle);
    let both = |text: &str| [kept, lost].map(|socket| says(&park.pod, socket, text));
    assert_eq!(both("hello"), ["backend-1", "backend-2"]);
    park.agent.take().unwrap().stop().unwrap();
    std::fs::remove_file(pinned(&park.home, "lb_config")).unwrap();
    park.program(2, &[1]);
    park.agent = Some(Agent::start(park.net.node(1), &park.home).unwrap());
    assert_eq!(connects_again(&park.pod, lost, dns(2)), "backend-1", "it has another backend now");
    assert_eq!(says(&park.pod, kept, "still?"), "backend-1");
}

/// NE-3, CT-3: a flow belongs to its Service only while there is one; it ends with the endpoint, or when the address is somebody
/// else's.
#[test]
fn a_connected_socket_outlives_its_service_and_not_its_backend() {
    needs_root!();
    let mut park = Park::new("vanished");
    for n in [1, 2] {
        park.serve(n);
        park.program(n, &[n]);
    }
    park.start(&[]);
    let [pod, host] = [&park.pod, &park.host];
    let [kept, taken] = [(pod, 1), (host, 2)].map(|(probe, n)| {
        let socket = probe.open_udp(&Udp::connected(dns(n))).unwrap().handle;
        assert_eq!(says(probe, socket, "hello"), format!("backend-{n}"));
        socket
    });
    // The Services go, their slices stay.
    for n in [1, 2] {
        let before = looks(&park);
        park.home.apply(&format!("service-{n}"), &objects(n, &[n])[1..]).unwrap();
        wait_for_another_look(&park, before);
    }
    assert_eq!(says(pod, kept, "still?"), "backend-1");
    assert_eq!(says(host, taken, "still?"), "backend-2");
    // The address of the second one is another Service's now.
    let mut other = objects(2, &[1]);
    for object in &mut other {
        let text = object.to_string().replace("service-2", "another");
        *object = text.parse().unwrap();
    }
    park.home.apply("another", &other).unwrap();
    assert_eq!(connects_again(host, taken, dns(2)), "backend-1");
    assert_eq!(says(pod, kept, "still?"), "backend-1");

    // A start finds nothing that says otherwise.
    let before = looks(&park);
    park.agent.take().unwrap().crash().unwrap();
    park.agent = Some(Agent::start(park.net.node(1), &park.home).unwrap());
    wait_for_another_look(&park, before);
    assert_eq!(says(pod, kept, "still?"), "backend-1");

    // The Service comes back and goes, and then so does the endpoint.
    park.program(1, &[1]);
    wait_for_new_sockets(&park, "backend-1");
    let before = looks(&park);
    park.home.apply("service-1", &objects(1, &[1])[1..]).unwrap();
    wait_for_another_look(&park, before);
    assert_eq!(says(pod, kept, "still?"), "backend-1");
    park.home.remove("service-1").unwrap();
    wait_for("the socket to be freed", SOON, || match says(pod, kept, "and now?").as_str() {
        "ECONNABORTED" | "EDESTADDRREQ" => Ok(()),
        other => Err(other.to_owned()),
    })
    .unwrap();
}

/// CT-4, ES-11: the address of a backend that is gone may be another Service's a moment later.
#[test]
fn the_next_owner_of_an_address_gets_nothing_that_was_not_meant_for_it() {
    needs_root!();
    let mut park = Park::new("reused");
    park.serve(2);
    let address = SocketAddr::new([10, 2, 255, 9].into(), 5353);
    park.net.node(2).add_address(address.ip()).unwrap();
    park.servers.serve(&Serve::udp("somebody", address)).unwrap();
    let shared = [[address.ip(), backend(2)[1]]];
    park.home.apply("service-1", &objects_at(1, &shared)).unwrap();
    park.start(&[]);
    let socket = park.pod.open_udp(&Udp::connected(dns(1))).unwrap().handle;
    assert_eq!(says(&park.pod, socket, "hello"), "somebody");
    // The pod at that address is another Service's now.
    let mut both = objects(1, &[2]);
    both.extend(objects_at(3, &shared));
    park.home.apply("service-1", &both).unwrap();
    assert_eq!(connects_again(&park.pod, socket, dns(1)), "backend-2");
}

/// TE-4, NE-3: a connection lives on when its endpoint terminates, leaves, or its Service goes; new ones are told.
#[test]
fn established_connections_are_never_cut() {
    needs_root!();
    let mut park = Park::new("established");
    park.serve(1);
    park.program(1, &[1]);
    park.start(&[]);
    let to = SocketAddr::new(cluster_ips(1)[0], 80);
    let stream = park.pod.open_tcp(&Tcp::to(to)).unwrap().handle;
    let new = || {
        park.pod
            .tcp(&Tcp::to(to).timeout(SHORT))
            .map_or_else(|error| error.errno().to_owned(), |it| it.server().to_owned())
    };
    let becomes = |wanted: &str| {
        wait_for("new connections", SOON, || match new() {
            seen if seen == wanted => Ok(()),
            seen => Err(seen),
        })
        .unwrap();
        assert_eq!(says(&park.pod, stream, wanted), "backend-1");
    };
    let mut terminating = objects(1, &[1]);
    terminate(&mut terminating, 1);
    park.home.apply("service-1", &terminating).unwrap();
    becomes("backend-1");
    park.program(1, &[]);
    becomes("ECONNREFUSED");
    park.home.remove("service-1").unwrap();
    becomes("TIMEOUT");
}

/// CT-8: upstream's client sends from one source port, each time by a socket of its own, while one pod follows the other.
#[test]
fn a_client_that_sends_from_one_port_reaches_the_next_pod() {
    needs_root!();
    let mut park = Park::new("one-port");
    park.serve(1);
    park.serve(2);
    park.program(1, &[]);
    park.start(&[]);
    let from = SocketAddr::new(park.client.ipv4.into(), 12345);
    let reaches = |wanted: &str| {
        wait_for(&format!("{wanted} to be reached"), SOON, || {
            // An unconnected socket hears of a refusal only where the hook can say it (NE-7).
            let is_meant = |seen: &String| seen == wanted || (wanted == "ECONNREFUSED" && seen == "TIMEOUT");
            let each = [Udp::to(dns(1)), Udp::connected(dns(1))].map(|udp| {
                let reached = park.pod.udp(&udp.bind(from).timeout(SHORT));
                reached.map_or_else(|error| error.errno().to_owned(), |it| it.server().to_owned())
            });
            if each.iter().all(is_meant) { Ok(()) } else { Err(format!("{each:?}")) }
        })
        .unwrap();
    };
    reaches("ECONNREFUSED");
    for (backends, wanted) in
        [(&[1_u8][..], "backend-1"), (&[], "ECONNREFUSED"), (&[2], "backend-2"), (&[1], "backend-1")]
    {
        park.program(1, backends);
        reaches(wanted);
    }
}

/// CT-10: a client that was refused, or met nobody, does not have to start again.
#[test]
fn an_unconnected_socket_meets_the_first_endpoint_of_its_service() {
    needs_root!();
    let mut park = Park::new("first");
    park.serve(1);
    park.program(1, &[]);
    park.start(&[]);
    let socket = park.pod.open_udp(&Udp::to(dns(1))).unwrap().handle;
    let before = says(&park.pod, socket, "too early");
    assert!(["ECONNREFUSED", "TIMEOUT"].contains(&before.as_str()), "{before}");
    park.program(1, &[1]);
    wait_for("the first endpoint", SOON, || match says(&park.pod, socket, "and now?") {
        server if server == "backend-1" => Ok(()),
        other => Err(other),
    })
    .unwrap();
}
