use std::collections::BTreeSet;

use http_body_util::BodyExt as _;
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::*;
use crate::observe::events::Recorded;

const SOON: Duration = Duration::from_secs(20);

fn name(name: &str) -> ServiceName {
    ServiceName::new("shop", name)
}

/// HC-4, HC-5, HC-6. The body is what kube-proxy 1.36 answers (`healthcheck/service_health.go`).
#[rstest]
#[case::endpoints(2, true, 200)]
#[case::no_endpoint(0, true, 503)]
#[case::unhealthy_agent(2, false, 503)]
#[case::neither(0, false, 503)]
#[tokio::test]
async fn ready_endpoints_and_a_healthy_agent_make_200(
    #[case] ready: u32,
    #[case] is_live: bool,
    #[case] code: u16,
) {
    let answer = service_answer(&name("web"), Some(ready), is_live);
    assert_eq!(answer.status().as_u16(), code);
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(header("x-load-balancing-endpoint-weight"), ready.to_string());
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let wanted = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t}},\n\t\"localEndpoints\": {ready},\
         \n\t\"serviceProxyHealthy\": {is_live}\n}}"
    );
    assert_eq!(body, wanted);
}

/// HC-7: kube-proxy answers 200 here.
#[test]
fn a_service_that_is_not_known_is_never_healthy() {
    assert_eq!(service_answer(&name("web"), None, true).status(), StatusCode::SERVICE_UNAVAILABLE);
}

/// That IPv4 address alone.
fn on(addr: IpAddr) -> ListenOn {
    [Listen::Set(BTreeSet::from([addr])), Listen::default()]
}

/// Servers on a loopback address that no other test has.
struct World {
    ports: Arc<HealthPorts>,
    listen_on: watch::Sender<ListenOn>,
    events: Recorder,
    notes: tokio::sync::mpsc::Receiver<Recorded>,
    metrics: Arc<Metrics>,
    ip: IpAddr,
    _stop: tokio_util::sync::DropGuard,
}

impl World {
    fn new(last: u8) -> Self {
        Self::with_room(last, MOST_HEALTH_CHECKS)
    }

    /// The same with so many connections at a time.
    fn with_room(last: u8, most: usize) -> Self {
        let ip: IpAddr = [127, 77, 0, last].into();
        let metrics = Arc::new(Metrics::new(std::path::Path::new("/nowhere")));
        let (events, notes) = Recorder::new(Arc::clone(&metrics));
        let (listen_on, addresses) = watch::channel(on(ip));
        let ports = Arc::<HealthPorts>::default();
        let stop = CancellationToken::new();
        let mut servers =
            ServiceHealth::new(Arc::new(Health::default()), Arc::clone(&metrics), events.clone(), addresses);
        servers.room = Room::new(most);
        tokio::spawn(servers.run(Arc::clone(&ports), stop.clone()));
        Self { ports, listen_on, events, notes, metrics, ip, _stop: stop.drop_guard() }
    }

    /// The owner's words. IPv4 alone.
    fn tell(&self, service: &str, port: Option<(u16, u32)>) {
        let port = port.map(|(port, ready)| HealthPort { port, ready: [Some(ready), None] });
        self.ports.tell(name(service), port);
    }

    async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        TcpStream::connect((self.ip, port)).await
    }

    /// The name and the number in the answer; nothing where nobody listens.
    async fn look(&self, port: u16) -> Option<String> {
        ask(&mut self.connect(port).await.ok()?).await
    }

    /// Waits for an answer that contains `part`, or for none.
    async fn expect(&self, port: u16, part: Option<&str>) {
        let fits = |seen: &Option<String>| match (seen, part) {
            (Some(seen), Some(part)) => seen.contains(part),
            (seen, part) => seen.is_none() && part.is_none(),
        };
        let waiting = async {
            while !fits(&self.look(port).await) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(SOON, waiting).await.is_ok(), "{port} never was {part:?}");
    }
}

/// One request on a connection that may be used again.
async fn ask(stream: &mut TcpStream) -> Option<String> {
    stream.write_all(b"POST /any/path HTTP/1.1\r\nHost: x\r\n\r\n").await.ok()?;
    let mut answer = vec![0; 4096];
    match stream.read(&mut answer).await {
        Ok(length) if length != 0 => Some(String::from_utf8_lossy(&answer[..length]).into_owned()),
        _ => None,
    }
}

/// HC-1, HC-2, HC-11.
#[tokio::test]
async fn a_port_opens_changes_its_number_and_closes_with_its_connections() {
    let world = World::new(1);
    world.tell("web", Some((31_001, 2)));
    world.expect(31_001, Some("\"localEndpoints\": 2")).await;
    world.tell("web", Some((31_001, 3)));
    world.expect(31_001, Some("\"localEndpoints\": 3")).await;

    let mut kept = world.connect(31_001).await.unwrap();
    assert!(ask(&mut kept).await.is_some_and(|answer| answer.contains("\"name\": \"web\"")));
    world.tell("web", Some((31_002, 3)));
    world.expect(31_002, Some("\"localEndpoints\": 3")).await;
    world.expect(31_001, None).await;
    assert_eq!(ask(&mut kept).await, None, "a connection that is kept open does not go on");

    let mut kept = world.connect(31_002).await.unwrap();
    assert!(ask(&mut kept).await.is_some());
    world.tell("web", None);
    world.expect(31_002, None).await;
    assert_eq!(ask(&mut kept).await, None, "for no Service either");
}

/// HC-8.
#[tokio::test]
async fn a_port_that_is_taken_is_said_once_and_opened_when_it_is_free() {
    let mut world = World::new(2);
    let taken = std::net::TcpListener::bind((world.ip, 31_003)).unwrap();
    world.tell("web", Some((31_003, 1)));
    let note = timeout(SOON, world.notes.recv()).await.unwrap().unwrap().note;
    assert_eq!((note.reason, note.is_warning), ("FailedToStartServiceHealthcheck", true));
    assert_eq!(note.subject, super::super::events::Subject::Service(name("web")));
    assert!(note.text.contains(":31003") && note.text.contains("in use"), "{}", note.text);
    // Other Services are not held up, and each of their changes is another attempt.
    world.tell("api", Some((31_004, 1)));
    world.expect(31_004, Some("api")).await;
    assert!(world.notes.try_recv().is_err(), "it has been said");
    drop(taken);
    world.tell("api", Some((31_004, 2)));
    world.expect(31_003, Some("web")).await;
}

/// HC-8: a fault of many Services fills the queue.
#[tokio::test]
async fn an_event_that_found_no_place_in_the_queue_comes_later_with_the_time_of_the_failure() {
    let mut world = World::new(7);
    while world.events.offer(Note::starting(), Timestamp::now()).is_ok() {}
    let _taken = std::net::TcpListener::bind((world.ip, 31_008)).unwrap();
    let begin = Timestamp::now();
    world.tell("web", Some((31_008, 1)));
    // One was dropped by filling the queue.
    let dropped = "lbagent_events_total{result=\"dropped\"} 2\n";
    let waiting = async {
        while !world.metrics.text().unwrap().contains(dropped) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap();
    let failed = Timestamp::now();
    let next = async {
        loop {
            match world.notes.recv().await.unwrap() {
                Recorded { note, .. } if note.reason == "Starting" => {}
                found => return found,
            }
        }
    };
    let found = timeout(SOON, next).await.unwrap();
    assert_eq!(found.note.reason, "FailedToStartServiceHealthcheck");
    assert!(found.at >= begin && found.at <= failed, "{begin} {failed} {found:?}");
    // The next attempt finds the same, which was told.
    world.tell("api", Some((31_009, 1)));
    world.expect(31_009, Some("api")).await;
    assert!(world.notes.try_recv().is_err());
}

/// HC-1: a number may go from one Service to another in one pass, in whatever order.
#[tokio::test]
async fn two_services_may_swap_their_numbers() {
    let mut world = World::new(3);
    world.tell("a", Some((31_005, 1)));
    world.tell("b", Some((31_006, 1)));
    world.expect(31_006, Some("\"b\"")).await;
    world.tell("a", Some((31_006, 1)));
    world.tell("b", Some((31_005, 1)));
    world.expect(31_005, Some("\"b\"")).await;
    world.expect(31_006, Some("\"a\"")).await;
    assert!(world.notes.try_recv().is_err(), "nobody was in the way");
}

/// HC-9.
#[tokio::test]
async fn ports_follow_the_addresses_that_are_listened_on() {
    let mut world = World::new(4);
    world.tell("web", Some((31_007, 1)));
    world.expect(31_007, Some("web")).await;
    let (before, after): (IpAddr, IpAddr) = (world.ip, [127, 77, 0, 5].into());
    world.listen_on.send(on(after)).unwrap();
    world.expect(31_007, None).await;
    world.ip = after;
    world.expect(31_007, Some("web")).await;
    world.listen_on.send([Listen::All, Listen::All]).unwrap();
    world.ip = before;
    world.expect(31_007, Some("web")).await;
}

/// HC-1: a cluster may have thousands of such Services.
#[tokio::test]
async fn many_ports_take_no_thread_each() {
    let world = World::new(6);
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let ports = 20_000..20_200;
    for port in ports.clone() {
        world.tell(&format!("web-{port}"), Some((port, 1)));
    }
    for port in ports.clone() {
        world.expect(port, Some(&format!("web-{port}"))).await;
    }
    // Other tests run beside this one.
    assert!(threads() < before + ports.len() / 2, "{before} threads became {}", threads());
}

/// HC-2, HZ-3: a hundred Services are a hundred sockets, and not a hundred times as many idle clients.
#[tokio::test]
async fn all_health_check_ports_together_have_so_many_connections() {
    let world = World::with_room(9, 4);
    let ports = [32_441, 32_442, 32_443];
    for port in ports {
        world.tell(&format!("web-{port}"), Some((port, 1)));
        world.expect(port, Some("200 OK")).await;
    }
    // Those of `expect` may still be on their way out.
    let mut silent = Vec::new();
    for at in 0..8 {
        silent.push(world.connect(ports[at % 2]).await.unwrap());
    }
    let mut kept = world.connect(ports[0]).await.unwrap();
    for _ in 0..16 {
        assert!(ask(&mut kept).await.is_some(), "who asks is not the silent one");
        silent.push(world.connect(ports[1]).await.unwrap());
        world.expect(ports[2], Some("200 OK")).await;
    }
    for stream in &mut silent[..8] {
        let ended = timeout(SOON, stream.read(&mut [0])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
}
