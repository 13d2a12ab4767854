//! What load balancers, kubelets and Prometheus are told: /healthz, /livez, /readyz, health check node ports, /metrics.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use lb_tests::{
    Netns, Topology,
    agent::{Agent, Home, at, service},
    binary,
    control_plane::{ControlPlane, KubeProxy, Link, ProxyMode, Trust, objects},
    http::{Answer, ask, get},
    needs_cluster, needs_root, wait_for,
};
use nix::{
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde_json::{Value, json};

/// For limits of things that are expected to happen.
const SOON: Duration = Duration::from_mins(2);

const HEALTHZ: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";
/// `spec.healthCheckNodePort`
const PORT: u16 = 32_100;

/// A Node object, with further fields of its `spec`.
fn node(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec})
}

/// A dual-stack LoadBalancer Service with policy Local and a health check port.
fn balancer(name: &str, port: u16) -> Value {
    let mut service = service(name, &["10.0.1.7", "fd00:10::107"], &[("http", "TCP", 80)]);
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    service["spec"]["healthCheckNodePort"] = json!(port);
    service["spec"]["ports"][0]["nodePort"] = json!(30_080);
    service
}

/// A slice of endpoints, each an address, its node, and whether it is ready or else terminating and serving.
fn slice(service: &str, family: &str, endpoints: &[(&str, &str, bool)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(addr, node, is_ready)| {
            let conditions = json!({"ready": is_ready, "serving": true, "terminating": !is_ready});
            json!({"addresses": [addr], "nodeName": node, "conditions": conditions})
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{}", family.to_lowercase()), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints,
    })
}

/// Waits until the answer to `path` fits.
fn expect(netns: &Netns, to: &str, path: &str, fits: impl Fn(&Answer) -> bool) -> Answer {
    wait_for(&format!("{to}{path}"), SOON, || match get(netns, at(to), path) {
        Ok(answer) if fits(&answer) => Ok(answer),
        Ok(answer) => Err(format!("{answer:?}")),
        Err(error) => Err(format!("{error:#}")),
    })
    .unwrap()
}

fn expect_code(netns: &Netns, to: &str, path: &str, code: u16) -> Answer {
    expect(netns, to, path, |answer| answer.code == code)
}

/// Waits until nobody listens.
fn expect_closed(netns: &Netns, to: &str) {
    wait_for(&format!("{to} to be closed"), SOON, || match netns.run(|| TcpStream::connect(at(to))) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
}

/// HZ-1, HZ-4, HZ-5, HZ-7, HZ-8.
#[test]
fn a_node_that_leaves_fails_healthz_and_not_livez() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("health-node").unwrap();
    home.apply("node", &[node("node1", &json!({}))]).unwrap();
    let agent = Agent::start(net.node(1), &home).unwrap();
    let netns = &*net.node(1).netns;

    expect_code(netns, HEALTHZ, "/readyz", 200);
    let healthy = expect_code(netns, HEALTHZ, "/healthz", 200).json();
    assert_eq!((&healthy["nodeEligible"], &healthy["healthy"]), (&json!(true), &json!(true)));
    assert_eq!(healthy["lastUpdated"], healthy["currentTime"]);
    assert_eq!(healthy["status"]["IPv6"]["healthy"], true);
    assert_eq!(
        get(netns, at("[::1]:10256"), "/livez").unwrap().code,
        200,
        "on every address of both families"
    );

    // Cordoned and not ready is no reason to send the connections of load balancers elsewhere.
    home.apply("node", &[node("node1", &json!({"unschedulable": true}))]).unwrap();
    let taint = |key: &str| json!({"taints": [{"key": key, "effect": "NoSchedule", "value": "1"}]});
    home.apply("node", &[node("node1", &taint("node.kubernetes.io/unschedulable"))]).unwrap();
    home.apply("marker", &[service("marker", &["10.0.1.9"], &[("", "TCP", 80)])]).unwrap();
    expect(netns, METRICS, "/metrics", |answer| answer.body.contains("\nlbagent_services 1\n"));
    expect_code(netns, HEALTHZ, "/healthz", 200);

    home.apply("node", &[node("node1", &taint("ToBeDeletedByClusterAutoscaler"))]).unwrap();
    let leaving = expect_code(netns, HEALTHZ, "/healthz", 503).json();
    assert_eq!((&leaving["nodeEligible"], &leaving["healthy"]), (&json!(false), &json!(true)));
    assert_eq!(expect_code(netns, HEALTHZ, "/livez", 200).json().get("nodeEligible"), None);
    home.apply("node", &[node("node1", &json!({}))]).unwrap();
    expect_code(netns, HEALTHZ, "/healthz", 200);
    home.remove("node").unwrap();
    expect_code(netns, HEALTHZ, "/healthz", 503);
    assert_eq!(get(netns, at(HEALTHZ), "/livez").unwrap().code, 200);
    agent.stop().unwrap();
    expect_closed(netns, HEALTHZ);
}

/// A thread of the agent that stands still until this is dropped.
struct Frozen {
    thaw: Option<mpsc::Sender<()>>,
    tracer: Option<thread::JoinHandle<()>>,
}

impl Frozen {
    /// The tracer is a thread of its own, as the kernel wants it.
    fn new(process: u32, thread_name: &str) -> Self {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let tid = tasks
            .map(|task| task.unwrap().path())
            .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == thread_name));
        let tid: i32 = tid.unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
        let (thaw, thawed) = mpsc::channel::<()>();
        let (frozen, is_frozen) = mpsc::channel();
        let tracer = thread::spawn(move || {
            let tid = Pid::from_raw(tid);
            ptrace::seize(tid, ptrace::Options::empty()).unwrap();
            ptrace::interrupt(tid).unwrap();
            waitpid(tid, Some(WaitPidFlag::__WALL)).unwrap();
            frozen.send(()).unwrap();
            // Ends when the other side is dropped.
            thawed.recv().unwrap_err();
            ptrace::detach(tid, None::<Signal>).unwrap();
        });
        is_frozen.recv().unwrap();
        Self { thaw: Some(thaw), tracer: Some(tracer) }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw = None;
        if let Some(tracer) = self.tracer.take() {
            tracer.join().unwrap();
        }
    }
}

/// HZ-2, HZ-3, HC-4: nobody but the owner could say so, and the owner says nothing.
#[test]
fn an_owner_that_hangs_fails_livez_after_a_minute_until_it_goes_on() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("health-hangs").unwrap();
    let endpoints = slice("web", "IPv4", &[("10.1.1.10", "node1", true)]);
    home.apply("objects", &[node("node1", &json!({})), balancer("web", PORT), endpoints]).unwrap();
    let agent = Agent::start(net.node(1), &home).unwrap();
    let netns = &*net.node(1).netns;
    let hcnp = format!("127.0.0.1:{PORT}");
    expect_code(netns, &hcnp, "/", 200);

    let frozen = Frozen::new(agent.id(), "owner");
    assert_eq!(get(netns, at(HEALTHZ), "/livez").unwrap().code, 200, "not yet");
    let late = expect_code(netns, HEALTHZ, "/livez", 503).json();
    assert_eq!(late["status"]["IPv4"]["healthy"], false);
    expect_code(netns, HEALTHZ, "/healthz", 503);
    let service = expect_code(netns, &hcnp, "/", 503).json();
    assert_eq!((&service["localEndpoints"], &service["serviceProxyHealthy"]), (&json!(1), &json!(false)));
    // A scrape does not ask the owner.
    let metrics = get(netns, at(METRICS), "/metrics").unwrap().body;
    assert!(metrics.contains("lbagent_livez_total{code=\"503\"}"), "{metrics}");
    drop(frozen);
    expect_code(netns, HEALTHZ, "/livez", 200);
    expect_code(netns, &hcnp, "/", 200);
}

/// HC-1 to HC-6, HC-10, HC-11.
#[test]
fn a_health_check_port_tells_of_local_ready_endpoints_of_its_own_family() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("health-port").unwrap();
    let own = node("node1", &json!({}));
    let v4 = |endpoints: &[(&str, &str, bool)]| slice("web", "IPv4", endpoints);
    let both = [("10.1.1.10", "node1", true), ("10.1.1.11", "node1", true), ("10.2.1.10", "node2", true)];
    let v6 = slice("web", "IPv6", &[("fd00:10:2:1::10", "node2", true)]);
    home.apply("objects", &[own, balancer("web", PORT), v6]).unwrap();
    home.apply("v4", &[v4(&both)]).unwrap();
    let _agent = Agent::start(net.node(1), &home).unwrap();
    let netns = &*net.node(1).netns;
    let (on_v4, on_v6) = (format!("192.168.50.1:{PORT}"), format!("[fd00:192:168:50::1]:{PORT}"));

    let answer = expect_code(netns, &on_v4, "/healthz", 200);
    for header in [
        "Content-Type: application/json",
        "X-Content-Type-Options: nosniff",
        "X-Load-Balancing-Endpoint-Weight: 2",
    ] {
        assert!(answer.headers.iter().any(|line| line == header), "{header}: {answer:?}");
    }
    assert_eq!(
        answer.json(),
        json!({
            "service": {"namespace": "default", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true,
        })
    );
    assert_eq!(ask(netns, at(&on_v4), "POST", "/any?thing").unwrap().body, answer.body);
    let other = expect_code(netns, &on_v6, "/healthz", 503).json();
    assert_eq!(other["localEndpoints"], 0, "a family of its own");
    assert!(!home.log().contains("cannot answer health checks"), "no port is bound twice: {}", home.log());

    // What terminates still serves, and is not told of.
    home.apply("v4", &[v4(&[("10.1.1.10", "node1", false)])]).unwrap();
    expect_code(netns, &on_v4, "/", 503);

    let mut kept = netns.run(|| TcpStream::connect(at(&on_v4))).unwrap();
    let mut again = || -> usize {
        let sent = kept.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        sent.and_then(|()| kept.read(&mut [0; 2048])).unwrap_or(0)
    };
    assert!(again() > 0);
    let mut cluster = balancer("web", PORT);
    cluster["spec"]["externalTrafficPolicy"] = json!("Cluster");
    home.apply("objects", &[node("node1", &json!({})), cluster]).unwrap();
    expect_closed(netns, &on_v4);
    expect_closed(netns, &on_v6);
    assert_eq!(again(), 0, "a connection that is kept open says nothing any more");

    home.apply("v4", &[v4(&both)]).unwrap();
    home.apply("objects", &[node("node1", &json!({})), balancer("web", PORT + 1)]).unwrap();
    expect_code(netns, &format!("192.168.50.1:{}", PORT + 1), "/", 200);
    expect_closed(netns, &on_v4);
}

/// HC-8, DS-1.
#[test]
fn a_health_check_port_that_is_taken_is_named_and_opened_when_it_is_free() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("health-taken").unwrap();
    let netns = &*net.node(1).netns;
    let taken = netns.run(|| TcpListener::bind(("0.0.0.0", PORT))).unwrap();
    let endpoints = slice("web", "IPv4", &[("10.1.1.10", "node1", true)]);
    home.apply("objects", &[node("node1", &json!({})), balancer("web", PORT), endpoints]).unwrap();
    let _agent = Agent::start(net.node(1), &home).unwrap();
    // The other family is not held up.
    expect_code(netns, &format!("[::1]:{PORT}"), "/", 503);
    expect(netns, METRICS, "/metrics", |answer| {
        answer.body.contains("lbagent_health_check_servers{state=\"failed\"} 1\n")
    });
    let said = || home.log().matches("cannot answer health checks").count();
    assert_eq!(said(), 1, "{}", home.log());
    drop(taken);
    expect_code(netns, &format!("127.0.0.1:{PORT}"), "/", 200);
    assert_eq!(said(), 1, "{}", home.log());
}

/// HZ-9.
#[test]
fn a_busy_port_is_waited_for_or_ends_the_agent() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("health-busy").unwrap();
    let netns = &*net.node(1).netns;
    let busy = netns.run(|| TcpListener::bind(HEALTHZ)).unwrap();
    let (succeeded, log) = Agent::run_to_end(net.node(1), &home, &["--bind-hard-fail"]).unwrap();
    assert!(!succeeded && log.contains("--healthz-address") && log.contains("in use"), "{log}");

    let _agent = Agent::start(net.node(1), &home).unwrap();
    assert!(home.log().contains("cannot listen, trying again"), "{}", home.log());
    drop(busy);
    expect_code(netns, HEALTHZ, "/livez", 200);
}

/// HC-9, HZ-1: beside a kube-proxy that answers already.
#[test]
fn an_agent_that_is_told_so_listens_nowhere() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("health-quiet").unwrap();
    let endpoints = slice("web", "IPv4", &[("10.1.1.10", "node1", true)]);
    home.apply("objects", &[node("node1", &json!({})), balancer("web", PORT), endpoints]).unwrap();
    let args = ["--healthz-address=", "--metrics-address=", "--health-check-node-ports=false"];
    let agent = Agent::start_with(net.node(1), &home, args).unwrap();
    let listening = || {
        let output = net.node(1).command("ss").args(["-Hltn"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(listening(), "");
    agent.stop().unwrap();
    let _agent = Agent::start(net.node(1), &home).unwrap();
    expect_code(&net.node(1).netns, &format!("127.0.0.1:{PORT}"), "/", 200);
    assert!(listening().contains("10256"), "the same question finds what is there");
}

/// HZ-6, HZ-10, NE-6.
#[test]
fn metrics_say_what_is_programmed_and_what_is_not() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("health-metrics").unwrap();
    let elsewhere = slice("web", "IPv4", &[("10.2.1.10", "node2", true)]);
    let mut broken = service("broken", &["10.0.1.8"], &[("", "TCP", 80)]);
    broken["spec"]["externalIPs"] = json!(["nonsense"]);
    home.apply("objects", &[node("node1", &json!({})), balancer("web", PORT), elsewhere, broken]).unwrap();
    let _agent = Agent::start(net.node(1), &home).unwrap();
    let netns = &*net.node(1).netns;
    expect_code(netns, HEALTHZ, "/livez", 200);
    let text =
        expect(netns, METRICS, "/metrics", |answer| answer.body.contains("\nlbagent_services 2\n")).body;
    for line in [
        "lbagent_no_local_endpoints{ip_family=\"IPv4\",traffic_policy=\"external\"} 1",
        "lbagent_no_local_endpoints{ip_family=\"IPv4\",traffic_policy=\"internal\"} 0",
        // It has no endpoints of this family at all.
        "lbagent_no_local_endpoints{ip_family=\"IPv6\",traffic_policy=\"external\"} 0",
        "lbagent_service_ports 3",
        "lbagent_notices 1",
        "lbagent_livez_total{code=\"200\"} 1",
        "lbagent_programs_attached{hook=\"lb_connect4\"} 1",
        "lbagent_datapath_actions_total{reason=\"dangling\"} 0",
        "lbagent_health_check_servers{state=\"listening\"} 2",
        "lbagent_map_capacity{map=\"lb_services\"} 4096",
        "lbagent_changes_pending{object=\"service\"} 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    let near = slice("web", "IPv4", &[("10.1.1.10", "node1", true)]);
    home.apply("objects", &[node("node1", &json!({})), balancer("web", PORT), near]).unwrap();
    let gone = "lbagent_no_local_endpoints{ip_family=\"IPv4\",traffic_policy=\"external\"} 0\n";
    expect(netns, METRICS, "/metrics", |answer| answer.body.contains(gone));
    assert_eq!(get(netns, at(METRICS), "/proxyMode").unwrap().body, "ebpf");
    assert_eq!(get(netns, at(METRICS), "/healthz").unwrap().body, "ok");
    let configz = get(netns, at(METRICS), "/configz").unwrap().json();
    assert_eq!(configz["kubeproxy.config.k8s.io"]["metricsBindAddress"], "127.0.0.1:10249", "{configz}");
    assert_eq!(configz["lb-agent"]["node-name"], *net.node(1).name, "{configz}");
    let slis = get(netns, at(METRICS), "/metrics/slis").unwrap().body;
    let wanted = "kubernetes_healthchecks_total{name=\"maps\",type=\"livez\",status=\"success\"} 1\n";
    assert!(slis.contains(wanted), "{slis}");
}

/// ES-17.
#[test]
fn a_change_has_a_receipt_from_the_api_to_the_maps() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("health-receipts").unwrap();
    home.apply("objects", &[node("node1", &json!({})), balancer("web", PORT)]).unwrap();
    let _agent = Agent::start(net.node(1), &home).unwrap();
    let shown = || -> Value {
        let mut command = Command::new(binary("lb-agent").unwrap());
        command.args(["service", "show", "web", "-o", "json"]);
        let output =
            command.env("LB_PIN_DIR", home.pin_dir()).env("LB_SOCKET", home.socket()).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout)
            .map_or(Value::Null, |shown| shown[0]["receipt"].clone())
    };
    let first = wait_for("a receipt", SOON, || {
        let receipt = shown();
        if receipt["committed"].is_string() { Ok(receipt) } else { Err(receipt.to_string()) }
    })
    .unwrap();
    assert_eq!(first["changed"], Value::Null, "it was there before the agent: {first}");

    let date = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output().unwrap();
    let now = String::from_utf8(date.stdout).unwrap().trim().to_owned();
    let mut endpoints = slice("web", "IPv4", &[("10.1.1.10", "node1", true)]);
    let annotation = "endpoints.kubernetes.io/last-change-trigger-time";
    endpoints["metadata"]["annotations"] = json!({annotation: now});
    home.apply("endpoints", &[endpoints]).unwrap();
    let receipt = wait_for("the receipt of the change", SOON, || {
        let receipt = shown();
        if receipt["changed"].is_string() { Ok(receipt) } else { Err(receipt.to_string()) }
    })
    .unwrap();
    let time = |field: &str| receipt[field].as_str().unwrap().to_owned();
    // All in UTC, to the microsecond at most: the first 19 characters compare as the times do.
    let second = |text: String| text.get(..19).unwrap().to_owned();
    assert_eq!(second(time("changed")), second(now));
    assert!(second(time("changed")) <= second(time("received")), "{receipt}");
    assert!(second(time("received")) <= second(time("committed")), "{receipt}");
    let count = "lbagent_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1\n";
    expect(&net.node(1).netns, METRICS, "/metrics", |answer| answer.body.contains(count));
}

/// A namespace with the addresses of node `name`, linked to the control plane.
fn linked<'a>(control_plane: &'a ControlPlane, label: &str) -> (Topology, Link<'a>) {
    let mut net = Topology::single().unwrap();
    label.clone_into(&mut net.nodes[0].name);
    let link = control_plane.link(&net.node(1).netns).unwrap();
    (net, link)
}

/// HC-2, HC-4, HC-5, HC-6, HZ-4, HZ-5: twin nodes of one name, one served by the real kube-proxy.
#[test]
fn answers_equal_those_of_kube_proxy_but_for_times() {
    needs_cluster!();
    let control_plane = ControlPlane::shared();
    let name = "health-twin";
    let namespace = control_plane.namespace(name).unwrap();
    let (ours, _our_link) = linked(control_plane, name);
    let (theirs, _their_link) = linked(control_plane, name);
    let addresses = ["192.168.50.1", "fd00:192:168:50::1"];
    control_plane.apply(&objects::node(name, &addresses)).unwrap();
    namespace
        .apply(&objects::service(
            "web",
            &json!({
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": PORT,
                "clusterIP": "10.0.250.7", "clusterIPs": ["10.0.250.7", "fd00:10::fa07"],
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
            }),
        ))
        .unwrap();
    let endpoints = |ready: bool| {
        let mut slice = slice("web", "IPv4", &[("10.1.1.10", name, ready), ("10.1.1.11", name, ready)]);
        slice["metadata"]["namespace"] = json!(namespace.name());
        slice
    };
    namespace.apply(&endpoints(true)).unwrap();

    let home = Home::new(name).unwrap();
    let url = &control_plane.node_urls()[0];
    let kubeconfig = control_plane.kubeconfig(url, Trust::Authority).unwrap();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let mut agent = Agent::spawn_from(ours.node(1), &home, ["--kubeconfig", kubeconfig]).unwrap();
    agent.wait_ready(&home).unwrap();
    let _proxy = KubeProxy::start(control_plane, &theirs.node(1).netns, name, ProxyMode::Nftables).unwrap();

    let same = |to: &str, path: &str, fits: &dyn Fn(&Answer) -> bool| {
        let nodes = [&ours, &theirs].map(|net| &net.node(1).netns);
        let [our, their] = nodes.map(|netns| expect(netns, to, path, fits).timeless());
        assert_eq!(our, their, "{to}{path}");
    };
    let on = |ip: &str| format!("{ip}:{PORT}");
    let ready =
        |count: u32| move |answer: &Answer| answer.body.contains(&format!("\"localEndpoints\": {count},"));
    // kube-proxy listens at the Node's addresses here, the default of its nftables mode (NP-3).
    same(&on("192.168.50.1"), "/healthz", &ready(2));
    same(&on("[fd00:192:168:50::1]"), "/whatever", &ready(0));
    namespace.apply(&endpoints(false)).unwrap();
    same(&on("192.168.50.1"), "/", &ready(0));

    // kube-proxy lists a family once it has written something of it.
    let both =
        |answer: &Answer| answer.code == 200 && answer.body.contains("IPv4") && answer.body.contains("IPv6");
    same(HEALTHZ, "/healthz", &both);
    same(HEALTHZ, "/livez", &both);
    same(HEALTHZ, "/nowhere", &|answer| answer.code == 404);
    same(METRICS, "/healthz", &|answer| answer.code == 200);
    let mut leaving = objects::node(name, &addresses);
    leaving["spec"] = json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]});
    control_plane.apply(&leaving).unwrap();
    same(HEALTHZ, "/healthz", &|answer| answer.code == 503);
    same(HEALTHZ, "/livez", &|answer| answer.code == 200);
}
