//! What unconnected UDP sockets remember, and for how long.

use std::{string::String, string::ToString as _, vec::Vec};

use super::sock::{Verdict, received, send};
use super::sock_tests::{POD, at, word, world};
use crate::{
    abi::{BackendState, FrontendKind, Proto, Reason, Service, ServiceId, UDP_PEERS},
    host::{MemSocket, MemTables},
};

#[test]
fn unconnected_udp_stays_with_its_backend() {
    let world = world();
    world.choose(&[1, 0, 0], 2);
    let mut socket = MemSocket::in_pod(POD);
    let mut to = || word(send(&world, &mut socket, at("10.96.0.10:53")));
    assert_eq!([to(), to(), to()], ["10.1.0.2:5353", "10.1.0.2:5353", "10.1.0.2:5353"]);
    assert_eq!(
        socket.udp_writes.get(),
        2,
        "the first datagram writes the pair and which is newest, later ones nothing"
    );
    assert_eq!(world.counted(Reason::Send), 3);
    assert_eq!(world.counted(Reason::Moved), 0);
    assert_eq!(received(&mut socket, at("10.1.0.2:5353")), Some(at("10.96.0.10:53")));
}

#[test]
fn two_sockets_choose_each_for_itself() {
    let world = world();
    world.choose(&[1, 0], 2);
    let to = || word(send(&world, &mut MemSocket::in_pod(POD), at("10.96.0.10:53")));
    assert_eq!([to(), to()], ["10.1.0.2:5353", "10.1.0.1:5353"]);
}

#[test]
fn unconnected_udp_to_an_empty_service_is_refused() {
    let world = world();
    assert_eq!(send(&world, &mut MemSocket::in_pod(POD), at("10.96.0.12:53")), Verdict::Refuse);
    assert_eq!(world.counted(Reason::RefusedSend), 1);
    assert_eq!(world.counted(Reason::Send), 0);
}

#[test]
fn a_terminating_backend_keeps_the_sockets_that_it_has() {
    let mut world = world();
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(word(send(&world, &mut socket, at("10.96.0.10:53"))), "10.1.0.1:5353");
    for backend in world.backends.values_mut() {
        backend.state = BackendState::Terminating as u8;
    }
    world.choose(&[1], 2);
    assert_eq!(word(send(&world, &mut socket, at("10.96.0.10:53"))), "10.1.0.1:5353");
}

#[test]
fn unconnected_udp_moves_when_its_backend_is_gone_and_stays_with_the_next_one() {
    let mut world = world();
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(word(send(&world, &mut socket, at("10.96.0.10:53"))), "10.1.0.1:5353");
    world.leave(2, "10.1.0.1:5353");
    world.choose(&[1, 0], 2);
    let mut to = || word(send(&world, &mut socket, at("10.96.0.10:53")));
    assert_eq!([to(), to()], ["10.1.0.2:5353", "10.1.0.2:5353"]);
    assert_eq!(world.counted(Reason::Moved), 1);
    assert_eq!(received(&mut socket, at("10.1.0.2:5353")), Some(at("10.96.0.10:53")));
}

/// 2.25-unconnected: what a backend has sent may arrive after it is gone, and after the socket has moved.
#[test]
fn a_late_reply_of_a_backend_that_is_gone_shows_the_frontend() {
    let mut world = world();
    let mut socket = MemSocket::in_pod(POD);
    let to = at("10.96.0.10:53");
    assert_eq!(word(send(&world, &mut socket, to)), "10.1.0.1:5353");
    world.leave(2, "10.1.0.1:5353");
    assert_eq!(received(&mut socket, at("10.1.0.1:5353")), Some(to));
    world.choose(&[1], 2);
    assert_eq!(word(send(&world, &mut socket, to)), "10.1.0.2:5353");
    for backend in ["10.1.0.1:5353", "10.1.0.2:5353"] {
        assert_eq!(received(&mut socket, at(backend)), Some(to), "{backend}");
    }
}

#[test]
fn an_id_that_has_another_owner_is_not_the_socket_s_backend() {
    let mut world = world();
    let mut socket = MemSocket::in_pod(POD);
    send(&world, &mut socket, at("10.96.0.10:53"));
    // Freed, and taken by another endpoint: active, with the next generation.
    for backend in world.backends.values_mut() {
        backend.generation = 2;
    }
    world.choose(&[1], 2);
    assert_eq!(word(send(&world, &mut socket, at("10.96.0.10:53"))), "10.1.0.2:5353");
    assert_eq!(world.counted(Reason::Moved), 1);
}

#[test]
fn a_socket_whose_service_became_empty_is_refused_and_goes_on_when_endpoints_appear() {
    let mut world = world();
    let mut socket = MemSocket::in_pod(POD);
    send(&world, &mut socket, at("10.96.0.11:53"));
    world.leave(3, "10.1.0.1:5353");
    let before = world.services[&ServiceId { index: 3 }];
    world.services.insert(ServiceId { index: 3 }, Service::FREE);
    assert_eq!(send(&world, &mut socket, at("10.96.0.11:53")), Verdict::Refuse);
    assert_eq!(world.counted(Reason::Moved), 0, "it has not moved anywhere");
    let cluster = world.run(&["10.1.0.3:5353"]);
    world.services.insert(ServiceId { index: 3 }, Service { cluster, ..before });
    assert_eq!(word(send(&world, &mut socket, at("10.96.0.11:53"))), "10.1.0.3:5353");
}

/// Frontends of as many services of one backend each, 10.97.0.1:53 -> 10.2.0.1:53 and so on.
fn many_services(count: u8) -> (MemTables, Vec<String>) {
    let mut world = world();
    let numbers: Vec<u8> = (1..=count).collect();
    let name = |number: &u8| std::format!("10.97.0.{number}:53");
    for number in &numbers {
        let service = 100 + u32::from(*number);
        world.serve(service, &[&std::format!("10.2.0.{number}:53")]);
        world.accept(FrontendKind::ClusterIp, &name(number), Proto::UDP, service);
    }
    (world, numbers.iter().map(name).collect())
}

#[test]
fn a_socket_remembers_four_frontends_and_the_fifth_takes_the_place_of_the_oldest() {
    let count = u8::try_from(UDP_PEERS).unwrap() + 1;
    let (world, frontends) = many_services(count);
    let mut socket = MemSocket::in_pod(POD);
    let backend = |number: u8| at(&std::format!("10.2.0.{number}:53"));
    for frontend in &frontends[..4] {
        send(&world, &mut socket, at(frontend));
    }
    let shown: Vec<_> = (1..=4).map(|number| received(&mut socket, backend(number))).collect();
    assert_eq!(shown, frontends[..4].iter().map(|text| Some(at(text))).collect::<Vec<_>>());

    send(&world, &mut socket, at(&frontends[4]));
    assert_eq!(received(&mut socket, backend(1)), None, "the oldest one is shown as it is");
    let shown: Vec<_> = (2..=5).map(|number| received(&mut socket, backend(number))).collect();
    assert_eq!(shown, frontends[1..].iter().map(|text| Some(at(text))).collect::<Vec<_>>());
}

#[test]
fn of_two_frontends_with_one_backend_the_one_used_last_is_shown() {
    let world = world();
    let mut socket = MemSocket::in_pod(POD);
    let shown = |socket: &mut MemSocket| received(socket, at("10.1.0.1:5353")).map(|to| to.to_string());
    send(&world, &mut socket, at("10.96.0.10:53"));
    assert_eq!(shown(&mut socket).as_deref(), Some("10.96.0.10:53"));
    send(&world, &mut socket, at("10.96.0.11:53"));
    assert_eq!(shown(&mut socket).as_deref(), Some("10.96.0.11:53"));
    send(&world, &mut socket, at("10.96.0.10:53"));
    assert_eq!(shown(&mut socket).as_deref(), Some("10.96.0.10:53"), "remembered pairs count as used too");
}

#[test]
fn a_socket_keeps_its_live_backend_whatever_else_it_sends_meanwhile() {
    let mut world = world();
    let mut socket = MemSocket::in_pod(POD);
    let dns = at("10.96.0.10:53");
    assert_eq!(word(send(&world, &mut socket, dns)), "10.1.0.1:5353");
    world.leave(2, "10.1.0.1:5353");
    world.choose(&[1], 2);
    assert_eq!(word(send(&world, &mut socket, dns)), "10.1.0.2:5353");
    // Another frontend, so that the newest pair is not this one's.
    send(&world, &mut socket, at("10.96.0.11:53"));
    world.choose(&[0], 2);
    assert_eq!(word(send(&world, &mut socket, dns)), "10.1.0.2:5353");
    assert_eq!(world.counted(Reason::Moved), 1);
}

#[test]
fn a_dead_backend_gives_up_its_place_before_a_live_one_is_forgotten() {
    let (mut world, frontends) = many_services(4);
    let mut socket = MemSocket::in_pod(POD);
    let backend = |number: u8| at(&std::format!("10.2.0.{number}:53"));
    for frontend in &frontends[..3] {
        send(&world, &mut socket, at(frontend));
    }
    // The second service moves, and moves again: that is more pairs than there are places.
    for next in [7, 8] {
        world.leave(102, &std::format!("10.2.0.{}:53", if next == 7 { 2 } else { 7 }));
        world.serve(102, &[&std::format!("10.2.0.{next}:53")]);
        send(&world, &mut socket, at(&frontends[1]));
        if next == 7 {
            let shown = received(&mut socket, backend(2));
            assert_eq!(shown, Some(at(&frontends[1])), "its last reply may be on its way");
        }
    }
    send(&world, &mut socket, at(&frontends[3]));
    for (frontend, number) in frontends.iter().zip([1, 8, 3, 4]) {
        assert_eq!(received(&mut socket, backend(number)), Some(at(frontend)));
    }
}

/// CT-4: who else has the frontend now serves it, although the backend is alive and somebody else's.
#[test]
fn unconnected_udp_moves_when_its_frontend_goes_to_another_service_and_comes_back() {
    let mut world = world();
    world.serve(8, &["10.1.0.8:5353"]);
    world.serve(9, &["10.1.0.9:5353"]);
    let mut socket = MemSocket::in_pod(POD);
    for (service, backend, moved) in
        [(8, "10.1.0.8:5353", 0), (9, "10.1.0.9:5353", 1), (9, "10.1.0.9:5353", 1), (8, "10.1.0.8:5353", 1)]
    {
        world.accept(FrontendKind::ExternalIp, "192.0.2.1:53", Proto::UDP, service);
        assert_eq!(word(send(&world, &mut socket, at("192.0.2.1:53"))), backend);
        assert_eq!(world.counted(Reason::Moved), moved, "service {service}");
    }
    // Late replies of both show whom the application has asked.
    for backend in ["10.1.0.8:5353", "10.1.0.9:5353"] {
        assert_eq!(received(&mut socket, at(backend)), Some(at("192.0.2.1:53")));
    }
}

#[test]
fn two_services_that_exchange_their_frontends_exchange_a_sockets_backends() {
    let (mut world, frontends) = many_services(2);
    let mut socket = MemSocket::in_pod(POD);
    let mut ask = |world: &MemTables| [0, 1].map(|n| word(send(world, &mut socket, at(&frontends[n]))));
    assert_eq!(ask(&world), ["10.2.0.1:53", "10.2.0.2:53"]);
    world.accept(FrontendKind::ClusterIp, &frontends[0], Proto::UDP, 102);
    world.accept(FrontendKind::ClusterIp, &frontends[1], Proto::UDP, 101);
    assert_eq!(ask(&world), ["10.2.0.2:53", "10.2.0.1:53"]);
}

#[test]
fn a_pair_whose_frontend_has_another_service_gives_up_its_place_before_one_in_use() {
    let (mut world, frontends) = many_services(4);
    world.serve(109, &["10.2.0.9:53"]);
    let mut socket = MemSocket::in_pod(POD);
    for frontend in &frontends {
        send(&world, &mut socket, at(frontend));
    }
    world.accept(FrontendKind::ClusterIp, &frontends[1], Proto::UDP, 109);
    send(&world, &mut socket, at(&frontends[1]));
    for (frontend, number) in frontends.iter().zip([1, 9, 3, 4]) {
        let shown = received(&mut socket, at(&std::format!("10.2.0.{number}:53")));
        assert_eq!(shown, Some(at(frontend)));
    }
}
