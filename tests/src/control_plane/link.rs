//! A wire from a node's network namespace to the control plane.

use anyhow::Result;

use super::{API_ADDRESSES, ControlPlane};
use crate::Netns;

/// A veth pair between a node and the control plane, removed on drop. The node's end is called `control`.
#[derive(Debug)]
pub struct Link<'a> {
    control_plane: &'a ControlPlane,
    /// The address of the node's end.
    pub ipv4: String,
    /// The address of the node's end.
    pub ipv6: String,
    device: String,
}

impl ControlPlane {
    /// Connects the network namespace `node`, so that [`Self::node_urls`] work there.
    ///
    /// The node gets the interface `control` with the addresses 172.31.N.2/24 and fd00:31:0:N::2/64, N from
    /// 1, and routes to [`API_ADDRESSES`]; its other interfaces and routes stay as they are.
    pub fn link(&self, node: &Netns) -> Result<Link<'_>> {
        let number = self.next_link()?;
        let device = format!("node{number}");
        self.netns().join(&device, node, "control")?;
        let (near4, near6) = (format!("172.31.{number}.1"), format!("fd00:31:0:{number}::1"));
        let (ipv4, ipv6) = (format!("172.31.{number}.2"), format!("fd00:31:0:{number}::2"));
        let link = Link { control_plane: self, ipv4, ipv6, device };
        let device = &link.device;
        self.netns()
            .ip(&format!("address add {near4}/24 dev {device}\naddress add {near6}/64 dev {device} nodad"))?;
        node.ip(&format!(
            "address add {}/24 dev control\naddress add {}/64 dev control nodad",
            link.ipv4, link.ipv6
        ))?;
        for address in API_ADDRESSES {
            let near = if address.contains(':') { &near6 } else { &near4 };
            node.ip(&format!("route add {address} via {near}"))?;
        }
        Ok(link)
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        // It is gone already when the node's namespace is.
        drop(self.control_plane.netns().ip(&format!("link delete {}", self.device)));
    }
}
