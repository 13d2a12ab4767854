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
use lb_tests::fuzz::{FuzzedNode, Step, objects, read};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
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

/// LB-8, SP-8, SY-6.
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

/// One way to spoil a history.
#[derive(Clone, Debug)]
enum Spoil {
    /// A bit of a byte is another one.
    Flip(Index, u8),
    /// A line is missing.
    Drop(Index),
    /// A line is there once more, at another place.
    Copy(Index, Index),
    /// Two lines change places.
    Swap(Index, Index),
    /// A line of another history.
    Borrow(Index, Index, Index),
    /// A pass, a restart, or nonsense.
    Insert(Index, &'static str),
    /// A number is another one.
    Number(Index, &'static str),
    /// A text is another one.
    Text(Index, &'static str),
}

/// Numbers that are at the end of something.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "80",
    "30080",
    "65535",
    "65536",
    "2147483647",
    "-2147483648",
    "18446744073709551616",
    "0.5",
    "1e400",
];

/// Texts that mean something in some field.
const TEXTS: [&str; 18] = [
    "",
    "None",
    "web",
    "node-1",
    "a",
    "UDP",
    "SCTP",
    "IPv4",
    "IPv6",
    "Local",
    "NodePort",
    "ClientIP",
    "10.96.0.1",
    "10.1.0.1",
    "192.0.2.1",
    "::",
    "fd00:96::1",
    "0.0.0.0/0",
];

fn spoil() -> impl Strategy<Value = Spoil> {
    let at = any::<Index>;
    prop_oneof![
        1 => (at(), 0..8_u8).prop_map(|(at, bit)| Spoil::Flip(at, bit)),
        1 => at().prop_map(Spoil::Drop),
        2 => (at(), at()).prop_map(|(from, to)| Spoil::Copy(from, to)),
        2 => (at(), at()).prop_map(|(one, other)| Spoil::Swap(one, other)),
        2 => (at(), at(), at()).prop_map(|(file, from, to)| Spoil::Borrow(file, from, to)),
        1 => (at(), select(&["", "!", "{", "-"][..])).prop_map(|(at, line)| Spoil::Insert(at, line)),
        3 => (at(), select(&NUMBERS[..])).prop_map(|(at, number)| Spoil::Number(at, number)),
        3 => (at(), select(&TEXTS[..])).prop_map(|(at, text)| Spoil::Text(at, text)),
    ]
}

impl Spoil {
    fn apply(&self, lines: &mut Vec<Vec<u8>>) {
        if lines.is_empty() {
            return;
        }
        let line = |at: &Index| at.index(lines.len());
        match self {
            Self::Flip(at, bit) => {
                let line = line(at);
                let len = lines[line].len();
                if len != 0 {
                    lines[line][at.index(len)] ^= 1 << bit;
                }
            }
            Self::Drop(at) => drop(lines.remove(line(at))),
            Self::Copy(from, to) => {
                let (copy, to) = (lines[line(from)].clone(), line(to));
                lines.insert(to, copy);
            }
            Self::Swap(one, other) => {
                let (one, other) = (line(one), line(other));
                lines.swap(one, other);
            }
            Self::Borrow(file, from, to) => {
                let other = split(&file.get(&HISTORIES).1);
                let to = line(to);
                lines.insert(to, from.get(&other).clone());
            }
            Self::Insert(at, text) => {
                let at = line(at);
                lines.insert(at, text.as_bytes().to_vec());
            }
            Self::Number(at, number) => {
                let line = line(at);
                lines[line] = with_number(&lines[line], *at, number.as_bytes());
            }
            Self::Text(at, text) => {
                let line = line(at);
                lines[line] = with_text(&lines[line], *at, text.as_bytes());
            }
        }
    }
}

/// The line with one of its numbers replaced.
fn with_number(line: &[u8], at: Index, number: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> =
        line.chunk_by(|one, next| one.is_ascii_digit() == next.is_ascii_digit()).collect();
    let numbers: Vec<usize> = (0..parts.len()).filter(|part| parts[*part][0].is_ascii_digit()).collect();
    if !numbers.is_empty() {
        parts[*at.get(&numbers)] = number;
    }
    parts.concat()
}

/// The line with one of its texts replaced, of names and values alike.
fn with_text(line: &[u8], at: Index, text: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = line.split(|byte| *byte == b'"').collect();
    if parts.len() > 2 {
        let texts = (parts.len() - 1) / 2;
        parts[at.index(texts) * 2 + 1] = text;
    }
    parts.join(&b'"')
}

fn split(history: &[u8]) -> Vec<Vec<u8>> {
    history.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// A history that is shown as it would be checked in.
struct Spoiled(Vec<u8>);

impl fmt::Debug for Spoiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a history:\n{}", String::from_utf8_lossy(&self.0))
    }
}

fn spoiled() -> impl Strategy<Value = Spoiled> {
    (any::<Index>(), vec(spoil(), 0..24)).prop_map(|(file, spoils)| {
        let mut lines = split(&file.get(&HISTORIES).1);
        for spoil in &spoils {
            spoil.apply(&mut lines);
        }
        Spoiled(lines.join(&b'\n'))
    })
}

proptest! {
    /// LB-8, SP-8, SEL-9, SY-6: whatever comes, in whatever order.
    #[test]
    fn histories_that_are_spoiled_keep_the_promises(history in spoiled()) {
        objects(&history.0);
    }
}
