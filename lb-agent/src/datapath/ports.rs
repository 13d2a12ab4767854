//! Ports that packets are masqueraded with: nobody on this node uses them for anything else.

use std::{collections::BTreeSet, fs, ops::RangeInclusive};

/// Where Kubernetes takes NodePorts from unless it is told otherwise (`--service-node-port-range` of kube-apiserver).
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Below are the ports that servers of a node use by agreement.
const LOWEST: u16 = 1024;
/// So many are used even if connections of others have them: without any, nothing could be masqueraded.
const FEWEST: usize = 1024;

/// The ports from 1024 on that are neither in the range that this node's own sockets are given ports of, nor reserved, nor may
/// become NodePorts: those of the default range, and of the range of those that are programmed.
///
/// Answers to a masqueraded flow come to an address of this node at its port. A socket of this node that had the same port
/// could not talk to the same backend. Nor could a connection that others masquerade with one of the ports `translated`.
pub fn free(programmed: Option<(u16, u16)>, translated: &BTreeSet<u16>) -> Vec<u16> {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    without(left(&read("ip_local_port_range"), &read("ip_local_reserved_ports"), programmed), translated)
}

/// Leaves out ports that others have, but for those that are needed.
fn without(ports: Vec<u16>, translated: &BTreeSet<u16>) -> Vec<u16> {
    let free: Vec<u16> = ports.iter().copied().filter(|port| !translated.contains(port)).collect();
    if free.is_empty() || free.len() < FEWEST.min(ports.len() / 4) { ports } else { free }
}

fn left(local: &str, reserved: &str, programmed: Option<(u16, u16)>) -> Vec<u16> {
    let mut taken = vec![NODE_PORTS];
    taken.extend(programmed.map(|(min, max)| min..=max));
    let mut bounds = local.split_whitespace().map(str::parse);
    if let (Some(Ok(min)), Some(Ok(max))) = (bounds.next(), bounds.next()) {
        taken.push(min..=max);
    }
    taken.extend(reserved.trim().split(',').filter_map(range));
    (LOWEST..=u16::MAX).filter(|port| !taken.iter().any(|taken| taken.contains(port))).collect()
}

/// A port, or the first and the last one with a hyphen between them.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    Some(min.trim().parse().ok()?..=max.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_has_the_ports_for_masquerading() {
        let free = left("32768\t60999\n", "8080,9000-9002\n", Some((20_000, 20_009)));
        let has = |port: u16| free.contains(&port);
        assert!(!has(1023) && has(1024) && has(u16::MAX));
        assert!(!has(30_000) && !has(32_767) && has(29_999), "NodePorts");
        assert!(!has(20_000) && !has(20_009) && has(20_010), "NodePorts of another range");
        assert!(!has(32_768) && !has(60_999) && has(61_000), "this node's own sockets");
        assert!(!has(8080) && !has(9000) && !has(9002) && has(9003), "reserved");
    }

    /// BS-11
    #[test]
    fn connections_of_others_keep_their_ports_unless_they_have_nearly_all() {
        let ports: Vec<u16> = (2000..2040).collect();
        let others = |upto: u16| without(ports.clone(), &(2000..upto).collect());
        assert_eq!(others(2000), ports);
        assert_eq!(others(2010), (2010..2040).collect::<Vec<_>>());
        assert_eq!(others(2030), (2030..2040).collect::<Vec<_>>());
        assert_eq!(others(2031), ports, "something must be masqueraded with");
        let many: Vec<u16> = (1024..60_000).collect();
        assert_eq!(without(many.clone(), &(1024..58_000).collect()).len(), 2000);
        assert_eq!(without(many.clone(), &(1024..59_500).collect()), many);
        assert_eq!(without(Vec::new(), &(1..9).collect()), Vec::<u16>::new());
    }

    #[test]
    fn without_the_kernel_s_word_only_node_ports_are_kept_free() {
        assert_eq!(left("", "\n", None).len(), 65_536 - 1024 - 2768);
        assert!(left("1024 65535", "", None).is_empty());
    }
}
