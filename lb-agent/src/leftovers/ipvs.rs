//! What kube-proxy leaves of its IPVS mode beside chains of iptables: an interface, ip sets, virtual servers.

use std::{fs, io, path::Path};

use super::{Found, Leftover};
use crate::netlink::{Attributes, Channel, NETLINK_NETFILTER, NETLINK_ROUTE, Request, text};

/// It has every address of a Service (`pkg/proxy/ipvs/proxier.go`).
const INTERFACE: &str = "kube-ipvs0";

/// ip sets of kube-proxy (`pkg/proxy/ipvs/ipset.go`), where those of IPv6 begin with `KUBE-6-`.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];
/// The longest name of a set (`IPSET_MAXNAMELEN`, with a zero byte): kube-proxy cuts the others of IPv6.
const SET_NAME: usize = 31;

const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
/// Bytes of `struct ifinfomsg`: all zero where the name says which interface.
const IFINFOMSG: [u8; 16] = [0; 16];

/// `NFNL_SUBSYS_IPSET`, where it is part of a type of message.
const SUBSYSTEM: u16 = 6;
/// Numbers of `include/uapi/linux/netfilter/ipset/ip_set.h`.
const IPSET_CMD_DESTROY: u16 = 3;
const IPSET_CMD_LIST: u16 = 7;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_FLAGS: u16 = 6;
/// In the place of an error number.
const IPSET_ERR_BUSY: i32 = 4100;
/// The names alone (`IPSET_FLAG_LIST_SETNAME`), as a number in network order.
const NAMES_ALONE: [u8; 4] = [0, 0, 0, 2];
/// `NLA_F_NET_BYTEORDER`
const NET_ORDER: u16 = 1 << 14;
/// What every kernel since 2.6.39 speaks (`IPSET_PROTOCOL_MIN`).
const PROTOCOL: u8 = 6;

/// What kube-proxy has left there.
pub(super) fn find() -> Found {
    let mut found = Found::default();
    match has_interface() {
        Ok(true) => found.leftovers.push(Leftover::Interface { name: INTERFACE.to_owned() }),
        Ok(false) => {}
        Err(error) => found.unseen.push(format!("cannot look for the interface {INTERFACE}: {error}")),
    }
    match sets() {
        Ok(names) => {
            let ours = names.into_iter().filter(|name| is_of_kube_proxy(name));
            found.leftovers.extend(ours.map(|name| Leftover::IpSet { name }));
        }
        Err(error) => found.unseen.push(format!("cannot list ip sets: {error}")),
    }
    let servers =
        fs::read_to_string("/proc/thread-self/net/ip_vs").map_or(0, |table| virtual_servers(&table));
    if servers > 0 {
        found.kept.push(format!(
            "{servers} virtual servers of IPVS: the kernel does not say whose they are; `ipvsadm --clear` removes all"
        ));
    }
    found
}

/// Removes it, and says what that was and what could not be removed. Sets that a rule still names cannot.
pub(super) fn remove() -> (Found, Vec<String>) {
    let Found { leftovers, kept, unseen, .. } = find();
    let (mut removed, mut failures) = (Found { kept, unseen, ..Found::default() }, Vec::new());
    for leftover in leftovers {
        let result = match &leftover {
            Leftover::Interface { .. } => remove_interface(),
            Leftover::IpSet { name } => remove_set(name),
            // The other kinds are not found here.
            Leftover::Iptables { .. } | Leftover::Nftables { .. } => continue,
        };
        match result {
            Ok(()) => removed.leftovers.push(leftover),
            Err(error) => failures.push(format!("{leftover}: {error}")),
        }
    }
    (removed, failures)
}

fn about_interface(kind: u16) -> Request {
    Request::new(kind, &IFINFOMSG, &Attributes::default().text(IFLA_IFNAME, INTERFACE))
}

fn has_interface() -> io::Result<bool> {
    match Channel::open(NETLINK_ROUTE)?.ask(&about_interface(RTM_GETLINK), |_| {}) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove_interface() -> io::Result<()> {
    Channel::open(NETLINK_ROUTE)?.ask(&about_interface(RTM_DELLINK), |_| {})
}

fn about_sets(command: u16, more: impl FnOnce(Attributes) -> Attributes) -> Request {
    let fixed = [u8::try_from(libc::AF_INET).unwrap_or_default(), 0, 0, 0];
    let attributes = more(Attributes::default().bytes(IPSET_ATTR_PROTOCOL, &[PROTOCOL]));
    Request::new(SUBSYSTEM << 8 | command, &fixed, &attributes)
}

/// Names of all sets.
fn sets() -> io::Result<Vec<String>> {
    // Asking would load the module, and without it there are no sets.
    if !Path::new("/sys/module/ip_set").exists() {
        return Ok(Vec::new());
    }
    let names_alone = |attributes: Attributes| attributes.bytes(IPSET_ATTR_FLAGS | NET_ORDER, &NAMES_ALONE);
    let mut names = Vec::new();
    Channel::open(NETLINK_NETFILTER)?.list(&about_sets(IPSET_CMD_LIST, names_alone), |body| {
        let name = body.get(4..).and_then(|body| text(body, IPSET_ATTR_SETNAME));
        names.extend(name.map(str::to_owned));
    })?;
    Ok(names)
}

fn remove_set(name: &str) -> io::Result<()> {
    let named = |attributes: Attributes| attributes.text(IPSET_ATTR_SETNAME, name);
    let answer = Channel::open(NETLINK_NETFILTER)?.ask(&about_sets(IPSET_CMD_DESTROY, named), |_| {});
    answer.map_err(|error| match error.raw_os_error() {
        Some(IPSET_ERR_BUSY) => io::Error::new(io::ErrorKind::ResourceBusy, "a rule still uses it"),
        _ => error,
    })
}

fn is_of_kube_proxy(name: &str) -> bool {
    SETS.iter().any(|set| {
        let mut v6 = format!("KUBE-6-{set}");
        v6.truncate(SET_NAME);
        name == v6 || name.strip_prefix("KUBE-") == Some(*set)
    })
}

/// The lines of /proc/net/ip_vs that begin with a protocol; `->` begins those of their destinations.
fn virtual_servers(table: &str) -> usize {
    let is_server = |line: &&str| ["TCP ", "UDP ", "SCTP", "FWM "].iter().any(|word| line.starts_with(word));
    table.lines().filter(is_server).count()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// 2.24-leftovers.
    #[test]
    fn sets_are_known_by_their_whole_name() {
        for name in ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-6-LOAD-BALANCER-SOURCE-CID"] {
            assert!(is_of_kube_proxy(name), "{name}");
        }
        for name in [
            "KUBE-6-LOAD-BALANCER-SOURCE-CIDR",
            "KUBE-DST-VBH27M7NWLDOZIE2",
            "CLUSTER-IP",
            "kube-router-svip",
        ] {
            assert!(!is_of_kube_proxy(name), "{name}");
        }
    }

    /// A set of ports, as kube-proxy makes them for NodePorts.
    fn create_set(name: &str) -> io::Result<()> {
        const IPSET_CMD_CREATE: u16 = 2;
        const NESTED: u16 = 1 << 15;
        let ports = Attributes::default().bytes(4 | NET_ORDER, &[0, 0]).bytes(5 | NET_ORDER, &[255, 255]);
        let create = about_sets(IPSET_CMD_CREATE, |attributes| {
            let typed = attributes.text(IPSET_ATTR_SETNAME, name).text(3, "bitmap:port");
            typed.bytes(4, &[0]).bytes(5, &[0]).bytes(7 | NESTED, ports.as_bytes())
        });
        Channel::open(NETLINK_NETFILTER)?.ask(&create, |_| {})
    }

    /// 2.24-leftovers: in a namespace of its own, which needs root and a kernel with ip sets.
    #[test]
    fn the_sets_of_kube_proxy_are_removed_and_no_others() {
        let inside = || -> Result<(), String> {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
            for name in ["KUBE-NODE-PORT-TCP", "KUBE-6-NODE-PORT-TCP", "ports"] {
                create_set(name).map_err(|error| error.to_string())?;
            }
            let set = |name: &str| Leftover::IpSet { name: name.to_owned() };
            let ours = [set("KUBE-6-NODE-PORT-TCP"), set("KUBE-NODE-PORT-TCP")];
            let mut found = find();
            found.leftovers.sort();
            assert_eq!((&found.leftovers[..], &found.unseen[..]), (&ours[..], &[][..]));
            let (mut removed, failures) = remove();
            removed.leftovers.sort();
            assert_eq!((&removed.leftovers[..], &failures[..]), (&ours[..], &[][..]));
            assert_eq!(find(), Found::default());
            assert_eq!(sets().map_err(|error| error.to_string())?, ["ports"]);
            Ok(())
        };
        if let Err(why) = thread::spawn(inside).join().unwrap() {
            eprintln!("NOT RUN: the_sets_of_kube_proxy_are_removed_and_no_others: {why}");
        }
    }

    #[test]
    fn virtual_servers_are_counted_without_their_destinations() {
        let table = "IP Virtual Server version 1.2.1 (size=4096)\n\
                     Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                     TCP  0A000064:0050 rr  \n  -> 0A01010A:1F90      Masq    1      0          0         \n\
                     UDP  0A00000A:0035 rr  \n";
        assert_eq!(virtual_servers(table), 2);
        assert_eq!(virtual_servers(""), 0);
    }
}
