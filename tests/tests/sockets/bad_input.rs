//! What cannot work is one error that names the thing and the remedy, and what worked goes on.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::maps::{Array, Map, MapData};
use lb_agent::datapath::{PROGRAMS, Program};
use lb_agent::maps::sys;
use lb_common::abi::meta;
use lb_tests::probe::Tcp;
use lb_tests::{Agent, needs_root};

use crate::legacy;
use crate::park::{Park, cluster_ips};

/// Runs an agent that has to fail, and returns what it said at its end: one line.
fn complaint(park: &Park, args: &[&str]) -> String {
    let (succeeded, log) = Agent::run_to_end(park.net.node(1), &park.home, args).unwrap();
    assert!(!succeeded, "the agent was expected to fail:\n{log}");
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("lb-agent: ")).collect();
    assert_eq!(lines.len(), 1, "one error:\n{log}");
    assert!(log.trim_end().ends_with(lines[0]), "the error comes last:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
    lines[0].to_owned()
}

/// Whether Service 1 is served.
fn works(park: &Park) {
    let to = SocketAddr::new(cluster_ips(1)[0], 80);
    let reached = park.pod.tcp(&Tcp::to(to)).unwrap();
    assert_eq!((reached.server(), reached.peer), ("backend-1", Some(to)));
}

fn park(label: &str) -> Park {
    let park = Park::new(label);
    park.serve(1);
    park.program(1, &[1]);
    park
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}

#[test]
fn a_second_agent_on_the_same_pins_is_sent_away() {
    needs_root!();
    let mut park = park("second");
    park.start(&[]);
    let pin_dir = park.home.pin_dir().display().to_string();
    has(&complaint(&park, &[]), &["another lb-agent is running", &pin_dir, "--pin-dir"]);
    works(&park);
}

#[test]
fn folders_of_the_wrong_kind_are_named_with_the_flag_to_change() {
    needs_root!();
    let mut park = park("folders");
    park.start(&[]);
    let manifests = park.home.manifests().display().to_string();
    let said = complaint(&park, &["--pin-dir", &manifests]);
    has(&said, &[&manifests, "is not on a bpffs", "mount -t bpf", "--pin-dir"]);
    let said = complaint(&park, &["--cgroup", &manifests]);
    has(&said, &[&manifests, "is not a cgroup2 folder", "--cgroup"]);
    works(&park);
}

/// A map under our name that is not ours is neither used nor removed.
#[test]
fn a_foreign_map_under_our_name_is_left_where_it_is() {
    needs_root!();
    let mut park = park("foreign");
    park.start(&[]);
    park.agent.take().unwrap().stop().unwrap();
    let pin = park.home.pin_dir().join("v1/maps/lb_frontends");
    fs::rename(&pin, pin.with_file_name("kept")).unwrap();
    Array::<MapData, u64>::create(1, 0).unwrap().pin(&pin).unwrap();

    let said = complaint(&park, &[]);
    has(
        &said,
        &[
            &pin.display().to_string(),
            "Array with 4-byte keys",
            "expected Hash",
            "lb-agent cleanup",
            "--pin-dir",
        ],
    );
    works(&park);

    fs::remove_file(&pin).unwrap();
    fs::rename(pin.with_file_name("kept"), &pin).unwrap();
    park.start(&[]);
    works(&park);
}

/// Sizes may be equal where meanings are not.
#[test]
fn maps_of_another_layout_are_not_touched() {
    needs_root!();
    let mut park = park("layout");
    park.start(&[]);
    park.agent.take().unwrap().stop().unwrap();
    let pin = park.home.pin_dir().join("v1/maps/lb_meta");
    let mut meta: Array<_, u64> = Map::Array(MapData::from_pin(&pin).unwrap()).try_into().unwrap();
    meta.set(meta::LAYOUT_AT, 999, 0).unwrap();
    let said = complaint(&park, &[]);
    has(&said, &["have layout 999", "use the lb-agent that made them", "lb-agent cleanup"]);
    assert_eq!(meta.get(&meta::LAYOUT_AT, 0).unwrap(), 999);
    works(&park);
    meta.set(meta::LAYOUT_AT, meta::LAYOUT, 0).unwrap();
    park.start(&[]);
    works(&park);
}

/// A program instead of a map, and a map instead of a link.
#[test]
fn pins_that_are_other_things_are_named() {
    needs_root!();
    let mut park = park("things");
    park.start(&[]);
    park.agent.take().unwrap().stop().unwrap();
    let maps = park.home.pin_dir().join("v1/maps");
    let links = park.home.pin_dir().join("v1/links");
    let swapped = |here: &Path, there: &Path| {
        let kept = here.with_file_name("kept");
        fs::rename(here, &kept).unwrap();
        fs::hard_link(there, here).or_else(|_| fs::rename(there, here)).unwrap();
        let said = complaint(&park, &[]);
        has(&said, &[&here.display().to_string()]);
        works(&park);
        if there.exists() { fs::remove_file(here) } else { fs::rename(here, there) }.unwrap();
        fs::rename(&kept, here).unwrap();
    };
    swapped(&maps.join("lb_services"), &links.join("lb_recvmsg6"));
    swapped(&links.join("lb_connect4"), &maps.join("lb_netns"));
    park.start(&[]);
    works(&park);
}

#[test]
fn a_program_that_tolerates_no_other_is_named() {
    needs_root!();
    let mut park = park("legacy");
    legacy::attach(park.net.node(1).cgroup.path());
    let cgroup = park.net.node(1).cgroup.path().display().to_string();
    let said = complaint(&park, &[]);
    has(&said, &[&cgroup, "lb_connect4 (id ", "bpftool cgroup", "--cgroup"]);
    // All hooks or none: six of them could be had before this one.
    let folder = File::open(&cgroup).unwrap();
    let attached = |at: Program| sys::cgroup_programs(folder.as_fd(), at.attach_type).unwrap().len();
    for at in PROGRAMS {
        assert_eq!(attached(at), usize::from(at.name == "lb_connect4"), "{at:?}");
    }
    let links = fs::read_dir(park.home.pin_dir().join("v1/links")).unwrap();
    assert_eq!(links.count(), 0);

    // In a cgroup above, it is in the way as well.
    let below = park.net.node(1).cgroup.child("below").unwrap();
    let said = complaint(&park, &["--cgroup", &below.path().display().to_string()]);
    has(&said, &[&below.path().display().to_string(), "allows no other", "cgroup above"]);
    park.agent = None;
}
