//! `--nodeport-addresses`: on which of this node's addresses NodePorts are served.

use core::{fmt, str::FromStr};

use ipnet::IpNet;

use super::families::{Entry as _, ListError, entries};
use crate::model::Family;

/// Where NodePorts are served (NP-1, NP-7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodePortAddresses {
    /// On which of the addresses that others can reach.
    pub on: NodePortsOn,
    /// The word `localhost`: on 127.0.0.1 and ::1 too, whatever else is said.
    pub localhost: bool,
}

/// Which addresses of this node, but for loopback ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortsOn {
    /// The primary address of each family (NP-3).
    Primary,
    /// Every address (NP-4).
    All,
    /// Addresses in these ranges; a family without a range has all of its addresses (NP-2).
    Ranges(Vec<IpNet>),
    /// None: the list says nothing but `localhost`.
    Nowhere,
}

impl Default for NodePortAddresses {
    /// NP-3, as kube-proxy's nftables mode.
    fn default() -> Self {
        Self { on: NodePortsOn::Primary, localhost: false }
    }
}

impl NodePortAddresses {
    /// The ranges of one family.
    pub fn ranges(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        let ranges = match &self.on {
            NodePortsOn::Ranges(ranges) => &ranges[..],
            _ => &[],
        };
        ranges.iter().filter(move |range| range.family() == family)
    }
}

/// Why a list cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NodePortAddressesError {
    /// Neither a word nor a range.
    #[error("{0:?} is not an address range: write it like 192.0.2.0/24, or primary, all or localhost")]
    Unknown(String),
    /// Words that contradict each other.
    #[error(
        "primary, all and address ranges exclude each other: keep one of them; localhost may stand beside it"
    )]
    Mixed,
}

impl FromStr for NodePortAddresses {
    type Err = NodePortAddressesError;

    fn from_str(text: &str) -> Result<Self, NodePortAddressesError> {
        let (mut on, mut localhost) = (None, false);
        for entry in entries(text) {
            let next = match entry {
                "localhost" => {
                    localhost = true;
                    continue;
                }
                "primary" => NodePortsOn::Primary,
                "all" => NodePortsOn::All,
                text => NodePortsOn::Ranges(vec![IpNet::read(text).map_err(|error| match error {
                    ListError::NotARange(text) => NodePortAddressesError::Unknown(text),
                    other => NodePortAddressesError::Unknown(other.to_string()),
                })?]),
            };
            on = Some(match (on, next) {
                (None, next) => next,
                (Some(NodePortsOn::Ranges(mut ranges)), NodePortsOn::Ranges(more)) => {
                    ranges.extend(more);
                    NodePortsOn::Ranges(ranges)
                }
                (Some(before), next) if before == next => next,
                _ => return Err(NodePortAddressesError::Mixed),
            });
        }
        let on = on.unwrap_or(if localhost { NodePortsOn::Nowhere } else { NodePortsOn::Primary });
        Ok(Self { on, localhost })
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = match &self.on {
            NodePortsOn::Primary => vec!["primary".to_owned()],
            NodePortsOn::All => vec!["all".to_owned()],
            NodePortsOn::Ranges(ranges) => ranges.iter().map(ToString::to_string).collect(),
            NodePortsOn::Nowhere => Vec::new(),
        };
        words.extend(self.localhost.then(|| "localhost".to_owned()));
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// NP-1, NP-3, NP-7.
    #[rstest]
    #[case::nothing_is_primary("", "primary")]
    #[case::primary("primary", "primary")]
    #[case::said_twice("primary,primary", "primary")]
    #[case::all("all", "all")]
    #[case::localhost_alone("localhost", "localhost")]
    #[case::localhost_beside_primary("localhost,primary", "primary,localhost")]
    #[case::localhost_beside_ranges("10.0.0.0/8,localhost", "10.0.0.0/8,localhost")]
    #[case::ranges("10.0.0.1/8, fd00::/64", "10.0.0.0/8,fd00::/64")]
    fn node_port_addresses_are_one_word_or_ranges_and_perhaps_localhost(
        #[case] text: &str,
        #[case] means: &str,
    ) {
        assert_eq!(text.parse::<NodePortAddresses>().unwrap().to_string(), means);
    }

    /// NP-1.
    #[rstest]
    #[case::primary_and_range("primary,10.0.0.0/8", "primary, all and address ranges exclude")]
    #[case::range_and_all("10.0.0.0/8,all", "primary, all and address ranges exclude")]
    #[case::primary_and_all("primary,all", "primary, all and address ranges exclude")]
    #[case::an_address("10.0.0.1", "\"10.0.0.1\" is not an address range")]
    #[case::an_interface("eth0", "\"eth0\" is not an address range")]
    fn what_contradicts_itself_is_refused(#[case] text: &str, #[case] named: &str) {
        let error = text.parse::<NodePortAddresses>().unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
    }
}
