//! SCTP: associations between one address and another.

use super::{
    Table,
    net::{Kind, Net, OVERLAY, SERVICE, UPLINK, both},
};
use crate::abi::{FrontendKind, Proto, Reason};

/// A Service of SCTP on another node, at `lb:80` and NodePort 30080.
fn served(net: Net, backend: &str) -> Net {
    let mut net = net.serve(&[backend]);
    net.accept(FrontendKind::LoadBalancer, "lb:80", Proto::SCTP, SERVICE);
    net.accept(FrontendKind::NodePort, "any:30080", Proto::SCTP, SERVICE);
    net
}

/// SC-1, SC-4: as a SYN does, INIT begins something; nothing else does.
#[test]
fn an_association_begins_with_init() {
    both(|net| {
        let net = served(net, "p11");
        for kind in [Kind::DATA, Kind::SHUTDOWN, Kind::ABORT] {
            assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", kind), "pass");
        }
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::INIT), "client:4000 > p11:8080 on");
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::DATA), "client:4000 > p11:8080 on");
        assert_eq!(net.leaves(UPLINK, "p11:8080 > client:4000", Kind::DATA), "lb:80 > client:4000 on");
        assert_eq!(net.comes(UPLINK, "client:4000 > node:30080", Kind::INIT), "client:2000 > p11:8080 on");
    });
}

/// SC-1: as under TCP, the backend's answer and the client's next word prove both directions.
#[test]
fn an_association_is_kept_once_both_ends_have_spoken() {
    both(|net| {
        let net = served(net, "far");
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::INIT), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.comes(OVERLAY, "far:8080 > tunnel:2000", Kind::DATA), "lb:80 > client:4000 device 2");
        assert_eq!(net.entries(Table::Kept).len(), 0);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::DATA), "tunnel:2000 > far:8080 routed");
        assert_eq!((net.entries(Table::Kept).len(), net.entries(Table::New).len()), (2, 0));
    });
}

/// SC-3: a second address of the backend is a stranger to the flow.
#[test]
fn an_association_has_one_address_at_each_end() {
    both(|net| {
        let net = served(net, "far");
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::INIT), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.comes(OVERLAY, "p12:8080 > tunnel:2000", Kind::DATA), "pass");
        assert_eq!(net.comes(UPLINK, "other:4000 > lb:80", Kind::DATA), "pass");
    });
}

/// SC-5: an association stays with its backend until it is closed, as a connection does; the next one chooses anew.
#[test]
fn an_association_stays_with_a_backend_that_is_gone() {
    both(|net| {
        let mut net = served(net, "far");
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::INIT), "tunnel:2000 > far:8080 routed");
        net.leave("far");
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::DATA), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.comes(OVERLAY, "far:8080 > tunnel:2000", Kind::DATA), "lb:80 > client:4000 device 2");
        let run = net.run(&["p12"]);
        net.service().cluster = run;
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::INIT), "client:4000 > p12:8080 on");
        assert_eq!(net.world.counted(Reason::Flow), 2);
    });
}
