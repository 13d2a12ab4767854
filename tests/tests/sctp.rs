//! SCTP is for packets only.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else {
            into.push(path);
        }
    }
}

/// SC-2: the kernel loads its module for the first socket of SCTP, and a listener of that module answers with ABORT what was meant for pods.
/// Where the module is part of the kernel, nothing else would show such a socket.
#[test]
fn no_source_of_the_agent_opens_a_socket_of_sctp() {
    let mut files = Vec::new();
    sources(&xtask::paths::workspace_root().join("lb-agent/src"), &mut files);
    let mut sockets = 0;
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        sockets += usize::from(text.contains("Socket::new(") || text.contains("socket("));
        for word in ["IPPROTO_SCTP", "Protocol::SCTP)", "SockProtocol::Sctp", "SOCK_SEQPACKET", "SeqPacket"] {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
    assert!(sockets > 0, "the agent opens sockets of other kinds: these are not its sources");
}
