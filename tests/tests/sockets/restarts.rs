//! Whatever happens to the agent, traffic goes on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_tests::probe::{Handle, Many, Tcp, Udp};
use lb_tests::{Probe, needs_root, wait_until};

use crate::park::{Park, SHORT, SOON, cluster_ips};

/// Stops and crashes, by turns.
const RESTARTS: usize = 20;

/// So many there are however slow the machine is: in an emulated one all of them would outlast the loads.
const FEWEST: usize = 4;

/// After this time no more than [`FEWEST`].
const ENOUGH: Duration = Duration::from_mins(2);

/// Attempts of each load that have to succeed in each moment without an agent.
const FEW: u64 = 10;

/// SY-5, 2.25-upgrade.
#[test]
fn no_connect_fails_while_the_agent_is_stopped_crashes_and_starts() {
    needs_root!();
    let mut park = Park::new("restarts");
    park.serve(1);
    park.serve(2);
    park.program(1, &[1, 2]);
    park.start(&[]);
    let to = |port| SocketAddr::new(cluster_ips(1)[0], port);
    let kept = park.pod.open_tcp(&Tcp::to(to(80))).unwrap();
    let connected = park.pod.open_udp(&Udp::connected(to(53))).unwrap();

    // Two probes, so that one of each load is under way at any time. Pauses keep ports from running out.
    let pause = Duration::from_micros(200);
    let streams = Many::until_finished(Tcp::to(to(80)).reset().timeout(SOON)).pause(pause);
    let streams = park.pod.begin(&streams).unwrap();
    let datagrams = Many::until_finished(Udp::to(to(53)).timeout(SOON)).pause(pause);
    let datagrams = park.host.begin(&datagrams).unwrap();
    let begin = Instant::now();
    for round in 0..RESTARTS {
        if round >= FEWEST && begin.elapsed() > ENOUGH {
            break;
        }
        let before = successes(&park, streams, datagrams);
        let agent = park.agent.take().unwrap();
        if round % 2 == 0 {
            agent.stop().unwrap();
        } else {
            agent.crash().unwrap();
        }
        wait_until("connections without an agent", SOON, || {
            let now = successes(&park, streams, datagrams);
            now[0] > before[0] + FEW && now[1] > before[1] + FEW
        })
        .unwrap();
        let without = successes(&park, streams, datagrams);
        let server = park.pod.exchange(kept.handle, "without an agent").unwrap().answer.server;
        park.start(&[]);
        let after = successes(&park, streams, datagrams);
        assert!(after[0] > without[0] && after[1] > without[1], "round {round}: {without:?}, then {after:?}");
        for (handle, from) in [(kept.handle, None), (connected.handle, Some(to(53)))] {
            let received = park.pod.exchange(handle, "with the next one").unwrap();
            assert_eq!(received.from, from, "round {round}");
        }
        assert_eq!(park.pod.exchange(kept.handle, "still").unwrap().answer.server, server);
        assert_eq!(park.pod.names(kept.handle).unwrap().peer, Some(to(80)), "round {round}");
    }
    for (probe, load) in [(&park.pod, streams), (&park.host, datagrams)] {
        assert!(!probe.tally(load).unwrap().is_done, "the load has ended too early");
        let tally = probe.finish(load).unwrap();
        assert_eq!(tally.failures(), 0, "{tally:?}");
        assert_eq!(tally.answered.len(), 2, "{tally:?}");
    }
}

/// Successful attempts of both loads until now.
fn successes(park: &Park, streams: Handle, datagrams: Handle) -> [u64; 2] {
    let count = |probe: &Probe, load| probe.tally(load).unwrap().successes();
    [count(&park.pod, streams), count(&park.host, datagrams)]
}

/// SY-5: what changed while there was no agent is programmed by the next one; until then the old state serves.
#[test]
fn what_changed_meanwhile_is_programmed_by_the_next_agent() {
    needs_root!();
    let mut park = Park::new("meanwhile");
    park.serve(1);
    park.serve(2);
    park.program(1, &[1]);
    park.start(&[]);
    let to = SocketAddr::new(cluster_ips(1)[0], 80);
    park.agent.take().unwrap().stop().unwrap();
    park.program(1, &[2]);
    assert_eq!(park.pod.tcp(&Tcp::to(to)).unwrap().server(), "backend-1");
    park.start(&[]);
    assert_eq!(park.pod.tcp(&Tcp::to(to)).unwrap().server(), "backend-2");
    park.agent.take().unwrap().crash().unwrap();
    park.home.remove("service-1").unwrap();
    park.start(&[]);
    assert_eq!(park.pod.tcp(&Tcp::to(to).timeout(SHORT)).unwrap_err().errno(), "TIMEOUT");
}
