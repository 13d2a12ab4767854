//! What fuzzing has taught, without a fuzzer: every history that is checked in, and many made of them.
//!
//! `cargo xtask fuzz` looks for more. What it finds goes to `fuzz/regressions/objects`, and is played here from then on.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fmt;
use std::fs;
use std::panic;
use std::path::Path;
use std::sync::LazyLock;

use lb_agent::model::Names;
use lb_tests::fuzz::{FuzzedNode, Step, objects, read, spoil};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use rstest::rstest;

/// Every history below `fuzz/`, with its name.
static HISTORIES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut found = Vec::new();
    for folder in ["corpus/objects", "regressions/objects"].map(|folder| fuzz.join(folder)) {
        // There is no regression yet, or there are some.
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    assert!(found.len() > 20, "{found:?}");
    found
});

/// ES-12, ES-14, LB-8, SP-8, SY-6.
#[test]
fn every_checked_in_history_keeps_the_promises() {
    let broken: Vec<&str> = HISTORIES
        .iter()
        .filter(|(_, history)| panic::catch_unwind(|| objects(history)).is_err())
        .map(|(name, _)| name.as_str())
        .collect();
    assert!(broken.is_empty(), "each panic is above: {broken:?}");
}

/// The seeds are worth something only while they are read as they are meant.
#[test]
fn every_line_of_the_seeds_made_of_scenarios_is_a_step() {
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    for (name, history) in HISTORIES.iter() {
        let file = Path::new(name).file_name().unwrap();
        if scenarios.join(file).with_extension("yaml").is_file() {
            let lines = history.split(|byte| *byte == b'\n').count();
            assert_eq!(read(history, &mut Names::default()).len(), lines, "{name}");
        }
    }
}

const NODE: &str =
    r#"{"kind":"Node","metadata":{"name":"node-1","labels":{"topology.kubernetes.io/zone":"a"}}}"#;
const SERVICE: &str = r#"{"kind":"Service","metadata":{"name":"web"},
    "spec":{"clusterIP":"10.96.0.1","ports":[{"port":80,"nodePort":30080}]}}"#;
const SLICE: &str = r#"{"kind":"EndpointSlice",
    "metadata":{"name":"web-1","labels":{"kubernetes.io/service-name":"web"}},
    "addressType":"IPv4","ports":[{"name":"","port":8080}],
    "endpoints":[
        {"addresses":["10.1.0.1"],"hints":{"forZones":[{"name":"a"}]}},
        {"addresses":["10.1.0.2"],"hints":{"forZones":[{"name":"b"}]}}]}"#;
const NO_SERVICE: &str = r#"-{"kind":"Service","metadata":{"name":"web"}}"#;
const NO_SLICE: &str = r#"-{"kind":"EndpointSlice","metadata":{"name":"web-1"}}"#;

/// SEL-9: what was changed and changed back before a pass is no change. Half of it is one.
#[rstest]
#[case::a_service_comes_and_goes(
    &[r#"{"kind":"Service","metadata":{"name":"new"},"spec":{"clusterIP":"10.96.0.2","ports":[{"port":80}]}}"#],
    &[r#"-{"kind":"Service","metadata":{"name":"new"}}"#],
)]
#[case::a_service_goes_and_comes(&[NO_SERVICE], &[SERVICE])]
#[case::a_slice_goes_and_comes(&[NO_SLICE], &[SLICE])]
#[case::a_port_is_renumbered_and_back(
    &[r#"{"kind":"Service","metadata":{"name":"web"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":81}]}}"#],
    &[SERVICE],
)]
#[case::a_service_changes_its_type_and_back(
    &[r#"{"kind":"Service","metadata":{"name":"web"},"spec":{"type":"ExternalName","externalName":"a.b"}}"#],
    &[SERVICE],
)]
#[case::a_slice_is_given_to_another_service_and_back(
    &[r#"{"kind":"EndpointSlice","metadata":{"name":"web-1","labels":{"kubernetes.io/service-name":"other"}},
        "addressType":"IPv4","ports":[],"endpoints":[]}"#],
    &[SLICE],
)]
#[case::the_node_moves_to_another_zone_and_back(
    &[r#"{"kind":"Node","metadata":{"name":"node-1","labels":{"topology.kubernetes.io/zone":"b"}}}"#],
    &[NODE],
)]
#[case::everything_goes_and_comes_twice(
    &[
        r#"-{"kind":"Node","metadata":{"name":"node-1"}}"#,
        NO_SERVICE,
        NO_SLICE,
        NODE,
        SERVICE,
        SLICE,
        NO_SERVICE,
    ],
    &[SERVICE],
)]
fn changes_that_cancel_each_other_before_a_pass_write_nothing(#[case] there: &[&str], #[case] back: &[&str]) {
    let mut names = Names::default();
    let mut node = FuzzedNode::start();
    let mut play = |objects: &[&str]| {
        for object in objects {
            let line: String = object.lines().map(str::trim).collect();
            let steps = read(line.as_bytes(), &mut names);
            assert_eq!(steps.len(), 1, "{line}");
            for step in steps {
                assert_eq!(node.follow(step), 0, "only a pass writes");
            }
        }
        node.follow(Step::Pass)
    };
    assert_ne!(play(&[NODE, SERVICE, SLICE]), 0);
    assert_eq!(play(&[there, back].concat()), 0, "there and back");
    assert_ne!(play(there), 0, "there");
    assert_ne!(play(back), 0, "back");
    node.finish();
}

/// A history that is shown as it would be checked in.
struct Spoiled(Vec<u8>);

impl fmt::Debug for Spoiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a history:\n{}", String::from_utf8_lossy(&self.0))
    }
}

fn spoiled() -> impl Strategy<Value = Spoiled> {
    (any::<Index>(), vec(any::<[u32; 4]>(), 0..24)).prop_map(|(first, choices)| {
        let others: Vec<&[u8]> = HISTORIES.iter().map(|(_, history)| history.as_slice()).collect();
        let seed = first.get(&others).to_vec();
        Spoiled(choices.into_iter().fold(seed, |history, choice| spoil(&history, &others, choice)))
    })
}

proptest! {
    /// ES-12, ES-14, LB-8, SP-8, SY-6: whatever comes, in whatever order.
    #[test]
    fn histories_that_are_spoiled_keep_the_promises(history in spoiled()) {
        objects(&history.0);
    }
}
