//! Unconnected UDP sockets: protocols of several datagrams depend on meeting the same backend again.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_tests::agent::{service, slice};
use lb_tests::probe::{Handle, Udp};
use lb_tests::{needs_root, wait_for, wait_until};
use serde_json::json;

use crate::park::{Park, SHORT, SOON, backend, cluster_ips, objects};

/// Sends one datagram and says who answered; the source shown must be `to`.
fn ask(park: &Park, socket: Handle, to: SocketAddr) -> String {
    let received = park.pod.exchange_with(socket, to, "again").unwrap();
    assert_eq!(received.from, Some(to), "the source of the reply");
    received.answer.server
}

fn datagram(n: u8, family: usize) -> SocketAddr {
    SocketAddr::new(cluster_ips(n)[family], 53)
}

fn number(server: &str) -> u8 {
    server.strip_prefix("backend-").unwrap().parse().unwrap()
}

#[test]
fn a_socket_keeps_its_backend_while_it_serves_and_moves_when_it_leaves() {
    needs_root!();
    let mut park = Park::new("keeps");
    (1..=6).for_each(|n| drop(park.serve(n)));
    park.program(1, &[1, 2, 3, 4]);
    park.start(&[]);
    for family in [0, 1] {
        park.program_and_wait(1, &[1, 2, 3, 4]);
        let to = datagram(1, family);
        let socket = park.pod.open_udp(&Udp::to(to)).unwrap().handle;
        let kept = ask(&park, socket, to);
        let own = number(&kept);
        let others: Vec<u8> = (1..=6).filter(|n| *n != own).collect();
        // Every other endpoint leaves and comes; order and number of slots change.
        for others in [&others[..1], &others[2..], &others[..0], &others[1..4], &others[..]] {
            let mut backends = others.to_vec();
            backends.push(own);
            backends.sort_unstable();
            park.program_and_wait(1, &backends);
            for _ in 0..8 {
                assert_eq!(ask(&park, socket, to), kept, "among {backends:?}");
            }
        }
        park.program_and_wait(1, &others);
        let moved = ask(&park, socket, to);
        assert_ne!(moved, kept);
        for _ in 0..8 {
            assert_eq!(ask(&park, socket, to), moved);
        }
        // The address comes back, as another backend: the socket stays where it is now.
        park.program_and_wait(1, &[1, 2, 3, 4, 5, 6]);
        for _ in 0..8 {
            assert_eq!(ask(&park, socket, to), moved);
        }
    }
}

#[test]
fn sockets_choose_for_themselves_and_keep_their_backends_over_a_restart_of_the_agent() {
    needs_root!();
    let mut park = Park::new("restart");
    (1..=4).for_each(|n| drop(park.serve(n)));
    park.program(1, &[1, 2, 3, 4]);
    park.start(&[]);
    let to = datagram(1, 0);
    let sockets: Vec<(Handle, String)> = (0..32)
        .map(|_| {
            let socket = park.pod.open_udp(&Udp::to(to)).unwrap().handle;
            (socket, ask(&park, socket, to))
        })
        .collect();
    let met: BTreeSet<&String> = sockets.iter().map(|(_, server)| server).collect();
    // 32 sockets miss one of four backends once in 2,500 times; two of them, never.
    assert!(met.len() >= 3, "{met:?}");
    let all_keep = |park: &Park, when: &str| {
        for (socket, server) in &sockets {
            assert_eq!(ask(park, *socket, to), *server, "{when}");
        }
    };
    all_keep(&park, "while it runs");
    park.agent.take().unwrap().crash().unwrap();
    all_keep(&park, "without an agent");
    park.start(&[]);
    all_keep(&park, "after a restart");
}

#[test]
fn a_socket_remembers_four_frontends_and_can_use_more() {
    needs_root!();
    let mut park = Park::new("frontends");
    (1..=8).for_each(|n| drop(park.serve(n)));
    let backends: Vec<u8> = (1..=8).collect();
    (1..=6).for_each(|n| park.program(n, &backends));
    park.start(&[]);
    for family in [0, 1] {
        let socket = park.pod.open_udp(&Udp::to(datagram(1, family))).unwrap().handle;
        let four: Vec<(SocketAddr, String)> =
            (1..=4).map(|n| datagram(n, family)).map(|to| (to, ask(&park, socket, to))).collect();
        for round in 0..3 {
            for (to, server) in &four {
                assert_eq!(ask(&park, socket, *to), *server, "{to}, round {round}");
            }
        }
        // The fifth takes the place of the oldest, and the others stay.
        let fifth = datagram(5, family);
        let server = ask(&park, socket, fifth);
        for round in 0..3 {
            for (to, server) in &four[1..] {
                assert_eq!(ask(&park, socket, *to), *server, "{to} after the fifth, round {round}");
            }
            assert_eq!(ask(&park, socket, fifth), server, "the fifth, round {round}");
        }
        // Any number in turn: every reply shows the frontend that was asked.
        for n in (1..=6).cycle().take(30) {
            ask(&park, socket, datagram(n, family));
        }
    }
}

/// 2.25-unconnected: the same pods behind two Services: whom the application asked last is who answers.
#[test]
fn replies_show_the_right_frontend_also_when_two_share_a_backend() {
    needs_root!();
    let mut park = Park::new("shared");
    park.serve(1);
    park.program(1, &[1]);
    park.program(2, &[1]);
    park.start(&[]);
    for family in [0, 1] {
        let [first, second] = [1, 2].map(|n| datagram(n, family));
        let socket = park.pod.open_udp(&Udp::to(first)).unwrap().handle;
        for to in [first, second, second, first, second, first, first] {
            assert_eq!(ask(&park, socket, to), "backend-1");
        }
    }
}

/// A socket may speak to a Service and to pods by turns, and is shown who answers.
#[test]
fn a_socket_that_speaks_to_a_pod_directly_is_shown_the_pod() {
    needs_root!();
    let mut park = Park::new("direct");
    park.serve(1);
    park.serve(2);
    park.program(1, &[1]);
    park.start(&[]);
    let to = datagram(1, 0);
    let socket = park.pod.open_udp(&Udp::to(to)).unwrap().handle;
    let direct = SocketAddr::new(backend(2)[0], 5353);
    for _ in 0..3 {
        assert_eq!(ask(&park, socket, to), "backend-1");
        assert_eq!(ask(&park, socket, direct), "backend-2");
    }
}

/// The id of the backend that left may belong to another Service by now.
#[test]
fn a_backend_that_another_service_has_now_is_not_used_any_more() {
    needs_root!();
    let mut park = Park::new("reused");
    (1..=3).for_each(|n| drop(park.serve(n)));
    park.program(1, &[1]);
    park.start(&[]);
    let to = datagram(1, 0);
    let [socket, other] = [(); 2].map(|()| park.pod.open_udp(&Udp::to(to)).unwrap().handle);
    assert_eq!([ask(&park, socket, to), ask(&park, other, to)], ["backend-1"; 2]);
    // Backend 1 moves to other Services. Ids are reused soon, because few are in use. The socket sends nothing meanwhile: it
    // would choose anew.
    park.program(1, &[2]);
    // A plan frees ids last: whoever meets the next Service may still be before that.
    wait_until("the backend to be gone", SOON, || ask(&park, other, to) == "backend-2").unwrap();
    let addresses: Vec<IpAddr> = vec![backend(1)[0]];
    for round in 0..4 {
        let name = format!("other-{round}");
        park.home
            .apply(
                &name,
                &[
                    service(&name, &[&format!("10.0.9.{round}")], &[("datagram", "UDP", 53)]),
                    slice(&name, &name, ("datagram", "UDP", 5353), &addresses),
                ],
            )
            .unwrap();
        let other = SocketAddr::new([10, 0, 9, round].into(), 53);
        wait_for("the other Service", SOON, || {
            park.pod.udp(&Udp::to(other).timeout(SHORT)).map_err(|error| error.to_string())
        })
        .unwrap();
    }
    assert_eq!(ask(&park, socket, to), "backend-2");
}

/// Gives Service `n` the backend `n`, and these external addresses too.
fn program_with_external(park: &Park, n: u8, addresses: &[IpAddr]) {
    let mut objects = objects(n, &[n]);
    objects[0]["spec"]["externalIPs"] = json!(addresses);
    park.home.apply(&format!("service-{n}"), &objects).unwrap();
}

/// CT-4: the backends of both Services live on, but the address belongs to the other one now.
#[test]
fn a_socket_follows_an_external_address_from_one_service_to_another_and_back() {
    needs_root!();
    let mut park = Park::new("follows");
    let external: [IpAddr; 2] = ["198.51.100.7", "2001:db8::7"].map(|addr| addr.parse().unwrap());
    (1..=2).for_each(|n| drop(park.serve(n)));
    program_with_external(&park, 1, &[]);
    program_with_external(&park, 2, &external);
    park.start(&[]);
    for family in [0, 1] {
        let to = SocketAddr::new(external[family], 53);
        let socket = park.pod.open_udp(&Udp::to(to)).unwrap().handle;
        assert_eq!(ask(&park, socket, to), "backend-2");
        for (wanted, server) in [(&external[..], "backend-1"), (&[], "backend-2")].repeat(2) {
            // Of two Services of one age the one with the smaller name has it.
            program_with_external(&park, 1, wanted);
            wait_for("the address to have its other owner", SOON, || {
                match park.pod.udp(&Udp::to(to).timeout(SHORT)) {
                    Ok(reached) if reached.server() == server => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .unwrap();
            for _ in 0..4 {
                assert_eq!(ask(&park, socket, to), server, "{to}");
            }
            let own = [1, 2].map(|n| ask(&park, socket, datagram(n, family)));
            assert_eq!(own, ["backend-1", "backend-2"], "both have endpoints all the time");
        }
    }
}
