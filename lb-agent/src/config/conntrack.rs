//! What the kernel's own connection tracking is told.

use clap::Args;

use super::GoDuration;

/// Settings of the kernel's connection tracking in the agent's network namespace. Names and defaults are kube-proxy's; what is
/// load-balanced here needs no entry there, and all else of this node may.
#[derive(Clone, Debug, Args)]
pub struct ConntrackArgs {
    /// How long the kernel's connection tracking remembers an open TCP connection without traffic; 0 leaves that to the node.
    #[arg(
        long,
        env = "LB_CONNTRACK_TCP_TIMEOUT_ESTABLISHED",
        default_value = "24h",
        value_name = "DURATION"
    )]
    pub conntrack_tcp_timeout_established: GoDuration,
    /// The same where the server has closed and the client has not. The kernel's minute is short for clients that keep such
    /// connections, and cut by whoever masquerades them.
    #[arg(long, env = "LB_CONNTRACK_TCP_TIMEOUT_CLOSE_WAIT", default_value = "1h", value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: GoDuration,
    /// Let segments outside of the window pass as valid; false leaves that to the node.
    #[arg(
        long, env = "LB_CONNTRACK_TCP_BE_LIBERAL", default_value_t = false, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", value_name = "BOOL"
    )]
    pub conntrack_tcp_be_liberal: bool,
    /// How long it remembers UDP that was not answered; 0 leaves that to the node.
    #[arg(long, env = "LB_CONNTRACK_UDP_TIMEOUT", default_value = "0s", value_name = "DURATION")]
    pub conntrack_udp_timeout: GoDuration,
    /// How long it remembers UDP in both directions; 0 leaves that to the node.
    #[arg(long, env = "LB_CONNTRACK_UDP_TIMEOUT_STREAM", default_value = "0s", value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: GoDuration,
}

impl ConntrackArgs {
    /// Names below `/proc/sys/net/netfilter` (nf_conntrack-sysctl.rst) and their values, seconds or a switch: those that are not left
    /// to the node.
    pub fn sysctls(&self) -> Vec<(&'static str, u64)> {
        let times = [
            ("nf_conntrack_tcp_timeout_established", self.conntrack_tcp_timeout_established),
            ("nf_conntrack_tcp_timeout_close_wait", self.conntrack_tcp_timeout_close_wait),
            ("nf_conntrack_udp_timeout", self.conntrack_udp_timeout),
            ("nf_conntrack_udp_timeout_stream", self.conntrack_udp_timeout_stream),
        ];
        let times = times.into_iter().filter(|(_, time)| !time.0.is_zero());
        // The kernel would forget at once what is remembered for no second.
        let mut sysctls: Vec<_> = times.map(|(name, time)| (name, time.0.as_secs().max(1))).collect();
        if self.conntrack_tcp_be_liberal {
            sysctls.push(("nf_conntrack_tcp_be_liberal", 1));
        }
        sysctls
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: ConntrackArgs,
    }

    fn sysctls(args: &[&str]) -> Vec<(&'static str, u64)> {
        Alone::parse_from(["x"].iter().chain(args)).args.sysctls()
    }

    #[test]
    fn what_kube_proxy_sets_is_set_and_nothing_else() {
        let defaults =
            [("nf_conntrack_tcp_timeout_established", 86_400), ("nf_conntrack_tcp_timeout_close_wait", 3600)];
        assert_eq!(sysctls(&[]), defaults);
    }

    #[test]
    fn zero_and_false_leave_it_to_the_node() {
        let left = ["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0s"];
        assert_eq!(sysctls(&left), []);
        let set = [
            "--conntrack-udp-timeout=30s",
            "--conntrack-udp-timeout-stream=500ms",
            "--conntrack-tcp-be-liberal",
        ];
        let set = sysctls(&[&left[..], &set].concat());
        let expected = [
            ("nf_conntrack_udp_timeout", 30),
            ("nf_conntrack_udp_timeout_stream", 1),
            ("nf_conntrack_tcp_be_liberal", 1),
        ];
        assert_eq!(set, expected);
    }
}
