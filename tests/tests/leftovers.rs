//! What a kube-proxy has left in a node's kernel: named by the agent, and removed by `lb-agent cleanup --kube-proxy`, which touches
//! nothing else.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use lb_tests::{
    Node, Topology,
    agent::{Agent, Home, service},
    binary,
    control_plane::{ControlPlane, KubeProxy, ProxyMode, objects},
    http::get,
    needs, needs_cluster, needs_root, wait_until,
};
use serde_json::{Value, json};

/// For limits of things that are expected to happen.
const SOON: Duration = Duration::from_mins(2);
/// What an agent says of what it has found.
const WARNING: &str = "remove them with `lb-agent cleanup --kube-proxy`";

/// Rules that belong to others: an administrator, a CNI plug-in, the kubelet.
const FOREIGN: &str = "*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -p tcp -m tcp --dport 9 -j MARK --set-xmark 0x1/0x1
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
-A PREROUTING -m comment --comment \"not \\\"-j KUBE-SERVICES\\\"\" -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -p tcp -m tcp --dport 9 -j KUBE-ROUTER-INPUT
-A POSTROUTING -o uplink0 -j MASQUERADE
-A CNI-HOSTPORT-DNAT -p udp -m udp --dport 9 -j RETURN
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:MINE - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -j MINE
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A MINE -i uplink0 -j ACCEPT
COMMIT
";

/// Runs a program on a node and returns what it prints.
fn run(node: &Node, program: &str, args: &[&str], input: &str) -> String {
    let mut command = node.command(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What is in all tables of iptables, without the hour and the counters of packets.
fn saved(node: &Node, tool: &str) -> String {
    let text = run(node, &format!("{tool}-save"), &[], "");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let rules: Vec<&str> = lines.map(|line| line.split(" [").next().unwrap_or(line)).collect();
    rules.join("\n")
}

/// The same rules, as far as a family has them. The kubelet's firewall is about 127.0.0.0/8; of IPv6 kube-proxy makes an empty one,
/// which its own `--cleanup` leaves too.
fn foreign(family: &str) -> String {
    let is_meant = |line: &&str| family == "ip" || !line.starts_with("-A KUBE-FIREWALL ");
    FOREIGN.split_inclusive('\n').filter(is_meant).collect()
}

/// Puts foreign rules in place, of one backend, and returns what `iptables-save` then prints for each family.
fn restore_foreign(node: &Node, backend: &str) -> [(String, String); 2] {
    ["ip", "ip6"].map(|family| {
        let tool = format!("{family}tables-{backend}");
        run(node, &format!("{tool}-restore"), &[], &foreign(family));
        let before = saved(node, &tool);
        (tool, before)
    })
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// `lb-agent cleanup --kube-proxy`: whether all is gone, and what it says.
fn cleanup(node: &Node) -> (bool, Value) {
    let mut command = node.command(binary("lb-agent").unwrap());
    let output = command.args(["cleanup", "--kube-proxy", "-o", "json"]).output().unwrap();
    let said = serde_json::from_slice(&output.stdout);
    (output.status.success(), said.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))))
}

/// What was removed, by kind, backend and family.
fn removed(said: &Value) -> Vec<String> {
    let word = |item: &Value, name: &str| item[name].as_str().unwrap_or_default().to_owned();
    let items = said["removed"].as_array().unwrap().iter();
    items
        .map(|item| ["kind", "backend", "family", "table", "name"].map(|name| word(item, name)).join(" "))
        .collect()
}

/// A node with a Service of many kinds of chains, served by the real kube-proxy while `look` looks. `prepare` comes before.
fn served<T>(
    (name, cluster_ips): (&str, [&str; 2]),
    mode: ProxyMode,
    prepare: impl FnOnce(&Node) -> T,
    look: impl FnOnce(&Node, &KubeProxy<'_>),
) -> (Topology, T) {
    let control_plane = ControlPlane::shared();
    let namespace = control_plane.namespace(name).unwrap();
    let mut net = Topology::single().unwrap();
    name.clone_into(&mut net.nodes[0].name);
    let node = net.node(1);
    let prepared = prepare(node);
    let _link = control_plane.link(&node.netns).unwrap();
    control_plane.apply(&objects::node(name, &["192.168.50.1", "fd00:192:168:50::1"])).unwrap();
    let [v4, v6] = cluster_ips;
    let service = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "clusterIP": v4, "clusterIPs": [v4, v6],
        "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
        "externalIPs": ["192.0.2.10", "2001:db8::10"],
        "ports": [{"port": 80, "targetPort": 8080}],
    });
    namespace.apply(&objects::service("web", &service)).unwrap();
    for (slice, ip) in [("web-4", "10.1.1.10"), ("web-6", "fd00:10:1:1::10")] {
        namespace.apply(&objects::slice(slice, "web", &[ip], 8080)).unwrap();
    }
    let proxy = KubeProxy::start(control_plane, &node.netns, name, mode).unwrap();
    for address in [v4, v6] {
        proxy.wait_programmed(address.parse().unwrap(), 80, SOON).unwrap();
    }
    look(node, &proxy);
    drop(proxy);
    (net, prepared)
}

/// Tables of iptables that a kube-proxy has written to.
fn all_tables(backend: &str) -> Vec<String> {
    let of = |family: &str| {
        ["filter", "mangle", "nat"].map(|table| format!("iptables {backend} {family} {table} ")).to_vec()
    };
    [of("IPv4"), of("IPv6")].concat()
}

/// 2.24-leftovers, SY-5: rules of the real kube-proxy in iptables mode, kept by nf_tables.
#[test]
fn chains_of_iptables_are_named_and_go_and_all_others_stay_as_they_were() {
    needs_cluster!();
    let (net, before) = served(
        ("leftovers-chains", ["10.0.251.1", "fd00:10::fb01"]),
        ProxyMode::Iptables,
        |node| restore_foreign(node, "nft"),
        |_, _| {},
    );
    let node = net.node(1);
    let home = Home::new("leftovers").unwrap();
    home.apply("objects", &[service("web", &["10.0.1.100"], &[("", "TCP", 80)])]).unwrap();
    let agent = Agent::start(node, &home).unwrap();

    let named = |status: &Value| status["agent"]["kube_proxy"]["leftovers"].as_array().unwrap().len();
    wait_until("the agent to find six tables", SOON, || named(&home.status().unwrap()) == 6).unwrap();
    assert_eq!(home.log().matches(WARNING).count(), 1, "{}", home.log());
    assert!(home.log().contains("iptables-nft IPv6 nat: "), "{}", home.log());
    let scraped = get(&node.netns, "127.0.0.1:10249".parse().unwrap(), "/metrics").unwrap();
    assert!(scraped.body.contains("lbagent_kube_proxy_leftovers 6\n"), "{}", scraped.body);
    for (tool, before) in &before {
        let now = saved(node, tool);
        assert!(
            now != *before && now.contains("-j KUBE-SERVICES"),
            "nothing goes without being asked for:\n{now}"
        );
    }

    let (is_clean, said) = cleanup(node);
    assert!(is_clean, "{said:#}");
    assert_eq!(removed(&said), all_tables("nft"));
    assert_eq!((&said["remaining"], &said["kept"], &said["running"]), (&json!([]), &json!([]), &json!([])));
    for (tool, before) in &before {
        assert_eq!(saved(node, tool), *before, "{tool}");
    }
    assert_eq!(cleanup(node).1["removed"], json!([]), "the second time");
    wait_until("the agent to see that", SOON, || named(&home.status().unwrap()) == 0).unwrap();
    agent.stop().unwrap();
}

/// 2.24-leftovers: the same rules, kept by the older backend.
#[test]
fn chains_of_iptables_legacy_go_too() {
    needs_cluster!();
    needs!(has("iptables-legacy"), "iptables-legacy");
    let (net, before) = served(
        ("leftovers-legacy", ["10.0.251.2", "fd00:10::fb02"]),
        ProxyMode::Iptables,
        |node| restore_foreign(node, "nft"),
        |_, _| {},
    );
    let node = net.node(1);
    let legacy = restore_foreign(node, "legacy");
    for (tool, _) in &legacy {
        let rules = run(node, &format!("{}-save", tool.replace("legacy", "nft")), &[], "");
        run(node, &format!("{tool}-restore"), &[], &rules);
        assert!(saved(node, tool).contains("-j KUBE-SERVICES"));
    }
    let (is_clean, said) = cleanup(node);
    assert!(is_clean, "{said:#}");
    let mut all = [all_tables("nft"), all_tables("legacy")].concat();
    all.sort();
    let mut removed = removed(&said);
    removed.sort();
    assert_eq!(removed, all);
    for (tool, before) in before.into_iter().chain(legacy) {
        assert_eq!(saved(node, &tool), before, "{tool}");
    }
}

/// 2.24-leftovers, SY-5: kube-proxy's own tables of nftables, and a kube-proxy that still runs.
#[test]
fn tables_of_nftables_go_and_a_kube_proxy_that_runs_is_named() {
    needs_cluster!();
    let rules =
        "table inet kube-proxy { chain a { accept; }; }\ntable ip mine { chain kube-proxy { drop; }; }\n";
    let prepare = |node: &Node| {
        run(node, "nft", &["-f", "-"], rules);
        run(node, "nft", &["list", "ruleset"], "")
    };
    let (net, before) = served(
        ("leftovers-tables", ["10.0.251.3", "fd00:10::fb03"]),
        ProxyMode::Nftables,
        prepare,
        |node, proxy| {
            let (_, said) = cleanup(node);
            assert_eq!(removed(&said), ["nftables  IPv4  ", "nftables  IPv6  "]);
            assert_eq!(said["running"], json!([proxy.daemon().pid()]));
        },
    );
    let (is_clean, said) = cleanup(net.node(1));
    assert!(is_clean && said["running"] == json!([]), "{said:#}");
    assert_eq!(run(net.node(1), "nft", &["list", "ruleset"], ""), before);
}

/// 2.24-leftovers: what a rule of somebody else needs stays and is named, in either backend; what is left of IPVS mode goes.
#[test]
fn chains_that_others_use_stay_and_are_named() {
    needs_root!();
    needs!(has("iptables-legacy"), "iptables-legacy");
    let net = Topology::single().unwrap();
    let node = net.node(1);
    let rules = "*nat
:POSTROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:CNI-DN-1 - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SVC-BY-HAND - [0:0]
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A CNI-DN-1 -p tcp -m tcp --dport 9 -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
";
    let more = "*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.0.1.1/32 -j KUBE-SVC-TCOU7JCQXEZGVUNU
-A KUBE-SVC-TCOU7JCQXEZGVUNU -j KUBE-MARK-MASQ
COMMIT
";
    let before = ["iptables-nft", "iptables-legacy"].map(|tool| {
        run(node, &format!("{tool}-restore"), &[], rules);
        let before = saved(node, tool);
        run(node, &format!("{tool}-restore"), &["--noflush"], more);
        (tool, before)
    });
    node.netns.ip("link add kube-ipvs0 type veth peer name not-kube-ipvs0").unwrap();
    let (is_clean, said) = cleanup(node);
    assert!(is_clean, "{said:#}");
    assert_eq!(
        removed(&said),
        ["iptables nft IPv4 nat ", "iptables legacy IPv4 nat ", "interface    kube-ipvs0"]
    );
    let kept = said["kept"].as_array().unwrap();
    let is_named = |kept: &Value| {
        kept.as_str().unwrap().contains("KUBE-MARK-MASQ and what it leads to, because a rule of CNI-DN-1")
    };
    assert!(kept.len() == 2 && kept.iter().all(is_named), "{kept:?}");
    for (tool, before) in before {
        assert_eq!(saved(node, tool), before, "{tool}");
    }
    assert_eq!(cleanup(node).1["removed"], json!([]));
}

/// 2.24-leftovers.
#[test]
fn without_leftovers_nothing_is_said_or_made() {
    needs_root!();
    let net = Topology::single().unwrap();
    let node = net.node(1);
    let home = Home::new("no-leftovers").unwrap();
    let _agent = Agent::start(node, &home).unwrap();
    let mut command = node.command(binary("lb-agent").unwrap());
    let output = command.args(["cleanup", "--kube-proxy"]).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "nothing to remove: no kube-proxy has left anything here\n"
    );
    assert_eq!(run(node, "nft", &["list", "ruleset"], ""), "");
    let tables = node.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/ip_tables_names"));
    assert_eq!(tables.unwrap_or_default(), "", "no tool of iptables-legacy has made tables");
    assert!(!home.log().contains("kube-proxy"), "{}", home.log());
}

/// 2.24-leftovers: with the last chain that translates, open connections lose their translation. Who removes it is told before.
#[test]
fn whoever_removes_the_last_chain_that_translates_is_warned() {
    needs_root!();
    let net = Topology::single().unwrap();
    let node = net.node(1);
    let chain = "post { type nat hook postrouting priority 100; };";
    let warned = |others: &str| {
        let own = format!(
            "table ip kube-proxy {{ chain {chain} }}\ntable ip6 kube-proxy {{ chain {chain} }}\n{others}"
        );
        run(node, "nft", &["-f", "-"], &own);
        let mut command = node.command(binary("lb-agent").unwrap());
        let output = command.args(["cleanup", "--kube-proxy"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        run(node, "nft", &["flush", "ruleset"], "");
        let said = String::from_utf8(output.stderr).unwrap();
        ["IPv4", "IPv6"]
            .map(|family| said.contains(&format!("warning: {family}: nothing but kube-proxy's table")))
    };
    assert_eq!(warned(""), [true, true]);
    assert_eq!(warned(&format!("table inet cni {{ chain {chain} }}")), [false, false]);
    assert_eq!(warned(&format!("table ip6 cni {{ chain {chain} }}")), [true, false]);
    assert_eq!(
        warned("table ip mine { chain post { type filter hook postrouting priority 0; }; }"),
        [true, true]
    );
    assert_eq!(warned("table ip mine { chain post { masquerade; }; }"), [true, true], "nobody comes there");
}
