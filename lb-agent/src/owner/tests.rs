//! The owner in turn over maps in memory: what it is told, what it writes then, and what others hear of it.

use std::path::Path;

use lb_common::abi::maps;
use tokio::sync::mpsc::channel;

use super::*;
use crate::{
    maps::memory::{MemGrace, MemMaps},
    model::{
        Change, ClusterIps, Conditions, EndpointFacts, Family, Node, Protocol, Service, ServicePort,
        SliceBuilder, SliceName, SlicePort,
    },
    observe::{
        events::{Note, Recorded, Subject},
        health::{Health, NodeState},
        outlets,
    },
};

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_hours(1);

/// An owner that has started over maps in memory, which it cannot make larger.
struct Turns {
    owner: Owner,
    outlets: Outlets,
    notes: Receiver<Recorded>,
    maps: MemMaps,
    /// Keeps the channel open.
    _sender: tokio::sync::mpsc::Sender<Message>,
    _folder: tempfile::TempDir,
}

impl Turns {
    fn new() -> Self {
        Self::with(MemMaps::new(Capacities::default()), Duration::ZERO)
    }

    fn with(maps: MemMaps, min_sync_interval: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            node: "n1".into(),
            cgroup: folder.path().to_owned(),
            socket_lb: SocketLb::ALL,
            switches: Switches {
                host_netns: 0,
                has_set_retval: false,
                has_mptcp: false,
                has_coarse_clock: false,
            },
            node_ports: NodePortOptions::default(),
            service_cidrs: Ranges::default(),
            packets: PacketOptions::default(),
            affinity_clients: 1,
            flows: 1,
            min_sync_interval,
            resync_interval: Duration::from_secs(30),
        };
        let (sender, messages) = channel(16);
        let mailbox = Mailbox { messages, sender: sender.downgrade() };
        let (outlets, notes) = outlets(Path::new("/nowhere"), true, Health::default());
        // Its runs end at once: this test program knows no such command.
        let healer = Healer::start(folder.path().to_owned(), |_, _, _| ()).unwrap();
        let pins = PinDir::for_memory(folder.path());
        let mut owner = Owner::new(settings, pins, healer, outlets.clone(), mailbox);
        let reconciler = Reconciler::restore(maps.open(), SocketLb::ALL).unwrap();
        owner.running = Some(Running {
            reconciler,
            capacities: Capacities::default(),
            attached: Vec::new(),
            ebpf: None,
            flush_log: Box::new(|| {}),
            full_pass: Instant::now() + FOR_EVER,
            doubtful: false,
        });
        owner.failed_growth = Some(Instant::now() + FOR_EVER);
        Self { owner, outlets, notes: notes.unwrap(), maps, _sender: sender, _folder: folder }
    }

    fn tell(&mut self, event: Event) {
        assert!(self.owner.take(Message::Object(event, Stamp::now())));
    }

    /// One turn.
    fn work(&mut self) {
        self.owner.work_if_due().unwrap();
    }

    fn tick(&mut self) {
        assert!(self.owner.take(Message::Tick(Instant::now())));
        self.work();
    }

    fn metric(&self, line: &str) -> Option<u64> {
        let text = self.outlets.metrics.text().unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.map(|value| value.parse().unwrap())
    }

    /// Passes that did something, of this kind.
    fn passes(&self, kind: &str) -> u64 {
        self.metric(&format!("lbagent_sync_duration_seconds_count{{kind=\"{kind}\"}}")).unwrap()
    }

    /// What was told as Events, by reason.
    fn told(&mut self, reason: &str) -> Vec<Note> {
        let told = core::iter::from_fn(|| Some(self.notes.try_recv().ok()?.note));
        told.filter(|note| note.reason == reason).collect()
    }

    fn receipts(&self) -> Vec<Receipt> {
        self.owner.receipts(|_| true)
    }
}

fn name(n: u8) -> ServiceName {
    ServiceName::new("ns", &format!("s{n}"))
}

/// Service `n` at port `port`, created a minute from now: later than the start of the owner.
fn service(n: u8, port: u16) -> Service {
    let mut service = Service::new(name(n));
    service.created_s = jiff::Timestamp::now().as_second() + 60;
    service.cluster_ips = ClusterIps { v4: Some([10, 96, 0, n].into()), v6: None };
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port, node_port: 0 };
    service.ports = [port].into();
    service
}

fn applied(service: &Service) -> Event {
    Event::Service(Change::Apply(service.clone()))
}

/// Ready endpoints of Service `n` on this node.
fn endpoints(n: u8, lasts: &[u8]) -> Event {
    let mut slice = SliceBuilder::new(SliceName::new("ns", &format!("s{n}-1")), name(n), Family::V4);
    slice.ports([SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }]);
    for last in lasts {
        slice.endpoint(&EndpointFacts {
            addr: [10, 0, n, *last].into(),
            conditions: Conditions::new(None, None, None),
            node: Some("n1".into()),
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        });
    }
    Event::Slice(Change::Apply(slice.build()))
}

fn deleted(n: u8) -> [Event; 2] {
    let slice = SliceName::new("ns", &format!("s{n}-1"));
    [Event::Service(Change::Delete(name(n))), Event::Slice(Change::Delete(slice))]
}

fn node(is_draining: bool) -> Event {
    Event::Node(Change::Apply(Node { is_draining, ..Node::new("n1".into()) }))
}

/// ES-17: what the API says of a Service is when it was created, and that is no cause of a later change.
#[test]
fn the_time_of_its_creation_is_in_the_first_receipt_of_a_service_alone() {
    let mut turns = Turns::new();
    let first = service(1, 80);
    turns.tell(applied(&first));
    turns.work();
    assert!(turns.receipts()[0].changed.is_some());
    turns.tell(applied(&Service { created_s: first.created_s, ..service(1, 81) }));
    turns.work();
    assert_eq!(turns.receipts()[0].changed, None);
    turns.tell(applied(&Service { created_s: first.created_s + 9, ..service(1, 81) }));
    turns.work();
    assert!(turns.receipts()[0].changed.is_some(), "made again while nobody looked");
}

/// HZ-4, HZ-8: whoever drains the node waits for no write.
#[test]
fn a_node_that_leaves_is_told_of_while_changes_are_held_back_and_after_a_failure() {
    let mut turns = Turns::with(MemMaps::new(Capacities::default()), FOR_EVER);
    turns.tell(node(false));
    turns.tell(applied(&service(1, 80)));
    turns.work();
    assert_eq!(turns.outlets.health.node(), NodeState::Eligible);
    turns.tell(applied(&service(2, 80)));
    turns.tell(node(true));
    turns.work();
    assert_eq!(turns.receipts().len(), 1, "changes are held back (SY-2)");
    assert_eq!(turns.outlets.health.node(), NodeState::Leaving);

    let mut turns = Turns::new();
    turns.maps.faults.fail_randomly(65_536, 1);
    turns.tell(node(false));
    turns.tell(applied(&service(1, 80)));
    turns.work();
    assert!(!turns.owner.retry.allows(Instant::now()), "in a pause after a failure");
    turns.tell(node(true));
    turns.work();
    assert_eq!(turns.outlets.health.node(), NodeState::Leaving);
}

/// SY-4.
#[test]
fn everything_is_planned_again_when_the_full_pass_is_due() {
    let mut turns = Turns::new();
    for n in [1, 2] {
        turns.tell(applied(&service(n, 80)));
    }
    turns.work();
    turns.tick();
    assert_eq!((turns.passes("full"), turns.passes("partial")), (0, 1));
    turns.owner.running.as_mut().unwrap().full_pass = Instant::now();
    turns.tick();
    assert_eq!((turns.passes("full"), turns.passes("partial")), (1, 1));
    turns.tick();
    assert_eq!(turns.passes("full"), 1, "not before the next one is due");
    let due = turns.owner.running.as_ref().unwrap().full_pass;
    assert!(due > Instant::now() + FULL_PASS / 2 && due <= Instant::now() + FULL_PASS);
}

/// Room for four backends: nobody has id 0.
const FEW_BACKENDS: Capacities = Capacities {
    frontends: 64,
    addresses: 4,
    services: 16,
    slots: 64,
    backends: 5,
    affinity: 1,
    ranges: 16,
    flows4: 1,
    flows6: 1,
};

/// SY-2, SY-3, 2.23-FailedToProgram: longer than one pause, by more than one attempt.
#[test]
fn a_write_that_keeps_failing_is_one_event_on_the_node_until_it_succeeds() {
    let mut turns = Turns::new();
    let attempt = |turns: &mut Turns| {
        turns.owner.retry.succeeded();
        turns.tick();
    };
    turns.tell(applied(&service(1, 80)));
    turns.maps.faults.fail_randomly(65_536, 1);
    turns.work();
    for _ in 0..5 {
        attempt(&mut turns);
    }
    assert_eq!(turns.metric("lbagent_sync_failures_total"), Some(6));
    let told = turns.told("FailedToProgram");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0].subject, told[0].is_warning), (&Subject::Node, true));
    for part in [maps::FRONTENDS, "ENOMEM", "not at all on this node", "/livez"] {
        assert!(told[0].text.contains(part), "{part}: {}", told[0].text);
    }
    assert!(turns.owner.report().last_error.is_some_and(|error| error.contains(maps::FRONTENDS)));

    turns.maps.faults.heal();
    attempt(&mut turns);
    assert_eq!(turns.owner.report().last_error, None);
    assert_eq!(turns.receipts().len(), 1);
    // It has come back.
    turns.maps.faults.fail_randomly(65_536, 1);
    turns.tell(applied(&service(2, 80)));
    attempt(&mut turns);
    assert_eq!(turns.told("FailedToProgram").len(), 1);
}

/// 2.23: a cause that found no place in the queue is told by the next attempt.
#[test]
fn a_full_queue_loses_no_cause() {
    let mut turns = Turns::new();
    while turns.outlets.events.offer(Note::starting(), jiff::Timestamp::now()).is_ok() {}
    turns.maps.faults.fail_randomly(65_536, 1);
    turns.tell(applied(&service(1, 80)));
    turns.work();
    assert_eq!(turns.told("FailedToProgram").len(), 0);
    turns.owner.retry.succeeded();
    turns.tick();
    assert_eq!(turns.told("FailedToProgram").len(), 1);
}

/// What has no room costs nothing while nothing makes room, and is there at once when something does.
#[test]
fn what_was_left_out_is_planned_again_when_there_may_be_room_and_not_with_each_tick() {
    let mut turns = Turns::with(MemMaps::new(FEW_BACKENDS), Duration::ZERO);
    for (n, lasts) in [(1, &[1, 2, 3][..]), (2, &[1, 2]), (3, &[1, 2])] {
        turns.tell(applied(&service(n, 80)));
        turns.tell(endpoints(n, lasts));
        turns.work();
    }
    assert_eq!((turns.owner.left_out.len(), turns.receipts().len()), (2, 1));
    let passes = turns.passes("partial");
    for _ in 0..10 {
        turns.tick();
        assert!(turns.owner.take(Message::Grace));
        turns.work();
    }
    assert_eq!(turns.passes("partial"), passes, "nothing was done");

    // Something is given up. The ids come back after a grace period, which is over at once here.
    for event in deleted(1) {
        turns.tell(event);
    }
    turns.work();
    assert!(turns.owner.take(Message::Grace));
    turns.work();
    assert_eq!((turns.owner.left_out.len(), turns.receipts().len()), (0, 2));
    assert!(turns.metric("lbagent_last_sync_writes") > Some(0), "what the pass wrote");

    // And now and then all the same.
    turns.tell(applied(&service(4, 80)));
    turns.tell(endpoints(4, &[1]));
    turns.work();
    assert_eq!(turns.owner.left_out.len(), 1);
    let passes = turns.passes("partial");
    let later = Instant::now() + turns.owner.settings.resync_interval;
    assert!(turns.owner.take(Message::Tick(later)));
    turns.work();
    assert_eq!(turns.passes("partial"), passes + 1);
}

/// ES-17: what waits for a grace period is not in the maps yet.
#[test]
fn what_waits_for_a_grace_period_is_certified_when_it_is_over() {
    let grace = MemGrace::held();
    let maps = MemMaps { grace: grace.clone(), ..MemMaps::new(FEW_BACKENDS) };
    let mut turns = Turns::with(maps, Duration::ZERO);
    turns.tell(applied(&service(1, 80)));
    turns.tell(endpoints(1, &[1, 2, 3]));
    turns.work();
    let before = turns.receipts();
    assert_eq!(before.len(), 1);
    // Its three endpoints are replaced by three others.
    turns.tell(endpoints(1, &[]));
    turns.work();
    let emptied = turns.receipts();
    turns.tell(endpoints(1, &[4, 5, 6]));
    turns.work();
    assert_eq!(turns.owner.left_out.lack(&name(1)), left_out::Lack::Later);
    assert_eq!(turns.receipts(), emptied, "it is not there yet");
    grace.release();
    assert!(turns.owner.take(Message::Grace));
    turns.work();
    assert_eq!(turns.owner.left_out.lack(&name(1)), left_out::Lack::Nothing);
    assert_ne!(turns.receipts(), emptied);
}
