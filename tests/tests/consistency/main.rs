//! A writer that changes Services at full speed, and sockets that connect to them all the while.
//!
//! The reconciler writes the kernel's maps, the programs of the object are attached to a child cgroup, and threads of a
//! process in that cgroup connect to 64 Services that never are without endpoints. The address of a backend says whose it
//! is and which change of its Service brought it ([`world`]), so every single connection is judged: it must reach a
//! backend that its own Service had at some moment between the call and its return. Nothing else will do: no refusal,
//! no Service address that went out as it was, no backend of another Service, no half-written one, none that had left
//! before the call.
//!
//! ```text
//! test ── child process in (namespace, cgroup)
//!           ├─ writer   Reconciler -> kernel maps; grace periods from the kernel's own thread
//!           ├─ readers  connected UDP; UDP without a peer, which keeps its backend while that lives; TCP
//!           └─ halt     interrupts that stop the readers' CPU in the middle of a program
//! ```
//!
//! It runs for 10 seconds, or as long as `LB_TESTS_SECONDS` says, and on a slow machine until enough was done.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod cpus;
mod readers;
mod shared;
mod world;
mod writer;

use std::ffi::OsStr;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use std::{env, iter};

use lb_agent::config::RefuseBy;
use lb_agent::datapath::attach::attach;
use lb_agent::datapath::load::{Loaded, Switches, load};
use lb_agent::maps::Maps;
use lb_agent::maps::memory::Capacities;
use lb_agent::maps::pin::PinDir;
use lb_tests::{Bpffs, Cgroup, Netns, Place as _, Process, needs_root, wait_until};

use crate::shared::Shared;
use crate::world::Kind;
use crate::writer::{Changes, Writer};

/// Room for what waits for a grace period while the writer goes on.
const CAPACITIES: Capacities = Capacities {
    frontends: 1024,
    addresses: 16,
    services: 1024,
    slots: 1 << 16,
    backends: 1 << 16,
    affinity: 1,
    ranges: 16,
    flows4: 1,
    flows6: 1,
};

/// Tells the child process where its pins and its cgroup are.
const PLACE: [&str; 2] = ["LB_TESTS_CONSISTENCY_PINS", "LB_TESTS_CONSISTENCY_CGROUP"];

/// Fewer than so many, for each second of [`duration`], would find nothing: connections, those of each kind, changes, and
/// Services made anew. A slow machine has [`LONGER`] for them.
const CONNECTS: u64 = 10_000;
const CONNECTS_OF_A_KIND: u64 = 100;
const CHANGES: u64 = 500;
const BIRTHS: u64 = 10;

/// How many times the [`duration`] a run may take until enough was done.
const LONGER: u32 = 6;

/// How long the writer and the readers run at least.
fn duration() -> Duration {
    let asked = env::var("LB_TESTS_SECONDS").ok();
    Duration::from_secs(asked.map_or(10, |text| text.parse().expect("LB_TESTS_SECONDS is a whole number")))
}

#[test]
fn connections_during_changes_reach_a_backend_that_their_service_has() {
    needs_root!();
    if let [Some(pins), Some(cgroup)] = PLACE.map(env::var_os) {
        return inside(Path::new(&pins), Path::new(&cgroup));
    }
    let bpffs = Bpffs::new("consistency").unwrap();
    let cgroup = Cgroup::new("consistency").unwrap();
    let netns = Netns::new("consistency").unwrap();
    // Every backend, and every Service address that is not translated, is an address of this namespace.
    netns
        .ip("route add local 10.0.0.0/8 dev lo
             route add local 172.16.0.0/12 dev lo
             route add local fd00::/8 dev lo")
        .unwrap();
    // Whatever else this machine does: a slow writer meets no reader.
    let mut child = Command::new("nice");
    child
        .args(["-n", "-15"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "connections_during_changes_reach_a_backend_that_their_service_has", "--nocapture"])
        .envs(iter::zip(PLACE, [bpffs.path().as_os_str(), cgroup.path().as_os_str()] as [&OsStr; 2]))
        .in_netns(&netns)
        .in_cgroup(&cgroup);
    let mut child = Process::start("readers and writer", &mut child).unwrap();
    let status = child.wait(LONGER * duration() + Duration::from_mins(1)).unwrap();
    assert!(status.success(), "the test in the child process has failed, see its words above");
}

/// The test itself, in a process whose sockets meet the programs.
fn inside(bpffs: &Path, cgroup: &Path) {
    let maps = attached(bpffs, cgroup);
    let shared = Shared::default();
    let mut writer = Writer::start(maps, &shared);
    wait_for_the_truth();
    let begin = Instant::now();
    thread::scope(|scope| {
        let shared = &shared;
        for kind in Kind::ALL {
            scope.spawn(move || cpus::on_reader(|| readers::run(kind, shared)));
        }
        scope.spawn(move || cpus::on_reader(|| cpus::halt(shared)));
        // Whatever happens to the writer, the readers end.
        let over = shared.over_when_dropped();
        cpus::on_writer(|| {
            writer.run(|changes| {
                let took = begin.elapsed();
                took >= duration() && (is_enough(changes, shared) || took >= LONGER * duration())
            });
        });
        drop(over);
    });
    let (took, changes) = (begin.elapsed(), writer.changes());
    let connects = Kind::ALL.map(|kind| shared.connects(kind));
    println!(
        "{took:.1?}: {changes:?}; connects, all judged: {}",
        iter::zip(Kind::ALL, &connects)
            .map(|(kind, count)| format!("{kind:?} {count}"))
            .collect::<Vec<_>>()
            .join(", ")
    );
    shared.assert_nothing_wrong();
    for kind in Kind::ALL {
        readers::assert_meet_exactly_the_last_ones(kind, &shared);
    }
    writer.remove_all();
    let seconds = duration().as_secs();
    assert!(
        is_enough(changes, &shared),
        "too little to find anything, after {took:?}: {connects:?} connects, {changes:?}; expected {} connects, {} of each \
         kind, {} applied, {} born",
        CONNECTS * seconds,
        CONNECTS_OF_A_KIND * seconds,
        CHANGES * seconds,
        BIRTHS * seconds,
    );
}

/// Whether a race would have been found.
fn is_enough(changes: Changes, shared: &Shared) -> bool {
    let seconds = duration().as_secs();
    let connects = Kind::ALL.map(|kind| shared.connects(kind));
    connects.iter().sum::<u64>() >= CONNECTS * seconds
        && connects.iter().all(|count| *count >= CONNECTS_OF_A_KIND * seconds)
        && changes.applied >= CHANGES * seconds
        && changes.born >= BIRTHS * seconds
}

/// Loads and attaches the programs, but for those that hide a socket's real peer from getpeername().
fn attached(bpffs: &Path, cgroup: &Path) -> Maps {
    let pins = PinDir::open(&bpffs.join("lb")).unwrap();
    // No namespace has this cookie: every socket is a pod's.
    let switches = Switches::probe(u64::MAX, RefuseBy::Auto).unwrap();
    let Loaded { mut ebpf, maps, .. } = load(&pins, switches, CAPACITIES, || {}).unwrap();
    attach(&mut ebpf, &pins, cgroup).unwrap();
    for program in ["lb_getpeername4", "lb_getpeername6"] {
        fs::remove_file(pins.link(program)).unwrap();
    }
    maps
}

/// The kernel detaches a link some time after its last reference is gone.
fn wait_for_the_truth() {
    for number in 0..2 {
        let socket = UdpSocket::bind((world::any(number), 0)).unwrap();
        socket.connect(world::frontend(number)).unwrap();
        wait_until("getpeername() to tell the real peer", Duration::from_secs(10), || {
            socket.peer_addr().unwrap() != world::frontend(number)
        })
        .unwrap();
    }
}
