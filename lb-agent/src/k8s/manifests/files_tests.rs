//! Files to events: what stays, what goes, and what is named.

use std::path::Path;
use std::sync::Arc;

use super::files::Files;
use super::tests::{OWN_NODE, service, slice, yaml};
use crate::model::{ClusterState, Event, ServiceName};

/// The files of a folder and the state that their events make.
struct Desk {
    files: Files,
    state: ClusterState,
}

impl Desk {
    fn new() -> Self {
        Self { files: Files::default(), state: ClusterState::new(OWN_NODE.into()) }
    }

    fn put(&mut self, path: &str, text: &str) -> Vec<String> {
        let mut events = Vec::new();
        let again = self.files.put(&Arc::from(Path::new(path)), yaml(text), &mut events);
        self.take(events);
        again.iter().map(|path| path.display().to_string()).collect()
    }

    fn remove(&mut self, path: &str) -> Vec<String> {
        let mut events = Vec::new();
        let again = self.files.remove(Path::new(path), &mut events);
        self.take(events);
        again.iter().map(|path| path.display().to_string()).collect()
    }

    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            self.state.apply(event, &mut std::collections::BTreeSet::new());
        }
    }

    /// Name and cluster IP of each Service.
    fn services(&self) -> Vec<String> {
        let one = |name: &ServiceName| {
            let ip = self.state.service(name).and_then(|service| service.cluster_ips.v4);
            format!("{} {}", name.name, ip.map(|ip| ip.to_string()).unwrap_or_default())
        };
        self.state.services().map(one).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.files.problems().iter().map(ToString::to_string).collect()
    }
}

#[test]
fn a_broken_file_keeps_what_it_gave_and_is_named() {
    let mut desk = Desk::new();
    desk.put("a.yaml", &format!("{}---\n{}", service("web", "10.96.0.1"), service("db", "10.96.0.2")));
    desk.put("b.yaml", &service("dns", "10.96.0.3"));
    assert_eq!(desk.problems(), [""; 0]);

    desk.put("a.yaml", &format!("{}---\nkind: [\n", service("web", "10.96.0.9")));
    desk.put("b.yaml", &service("dns", "10.96.0.4"));
    assert_eq!(desk.services(), ["db 10.96.0.2", "dns 10.96.0.4", "web 10.96.0.1"]);
    let [problem] = &desk.problems()[..] else { panic!("{:?}", desk.problems()) };
    assert!(
        problem.starts_with("a.yaml:11:7: ") && problem.ends_with("from before stays in force"),
        "{problem}"
    );

    desk.put("a.yaml", &service("web", "10.96.0.9"));
    assert_eq!(desk.services(), ["dns 10.96.0.4", "web 10.96.0.9"]);
    assert_eq!(desk.problems(), [""; 0]);
}

/// From the top of the file, and with what is used in its place.
#[test]
fn an_object_that_was_never_good_is_left_out_and_named() {
    let mut desk = Desk::new();
    let orphan = slice("web-1", "web").replace("kubernetes.io/service-name", "other");
    desk.put("a.yaml", &format!("# Whose?\n{orphan}"));
    let reason = "EndpointSlice ns/web-1: the EndpointSlice has no label kubernetes.io/service-name";
    assert_eq!(desk.problems(), [format!("a.yaml:2: {reason}; it is left out")]);
}

#[test]
fn a_file_that_was_never_good_gives_what_can_be_read_of_it() {
    let mut desk = Desk::new();
    let half = format!("{}---\nkind: [\n", service("web", "10.96.0.1"));
    desk.put("a.yaml", &half);
    assert_eq!(desk.services(), ["web 10.96.0.1"]);
    assert!(desk.problems()[0].ends_with("what cannot be read is left out"), "{:?}", desk.problems());
    desk.put("a.yaml", &half.replace("web", "db"));
    assert_eq!(desk.services(), ["db 10.96.0.1"]);
}

/// A Service without its address, which makes it one that cannot be used.
fn without_address(name: &str) -> String {
    service(name, "10.96.0.1").replace("  clusterIP: 10.96.0.1\n", "")
}

#[test]
fn an_object_that_cannot_be_used_any_more_stays_as_it_was_and_is_named() {
    let mut desk = Desk::new();
    let file = |web: &str| format!("{web}---\n{}", service("db", "10.96.0.2"));
    desk.put("a.yaml", &file(&service("web", "10.96.0.1")));
    desk.put("a.yaml", &file(&without_address("web")).replace("10.96.0.2", "10.96.0.3"));
    assert_eq!(desk.services(), ["db 10.96.0.3", "web 10.96.0.1"], "the others follow the file");
    let [problem] = &desk.problems()[..] else { panic!("{:?}", desk.problems()) };
    assert!(
        problem.starts_with("a.yaml:1: Service ns/web: the Service has no spec.clusterIP")
            && problem.ends_with("; it stays as it was before"),
        "{problem}"
    );
    // It may be refused for any time, also beside a document that cannot be read.
    desk.put("a.yaml", &format!("{}---\nkind: [\n", without_address("web")));
    desk.put("a.yaml", &without_address("web"));
    assert_eq!(desk.services(), ["web 10.96.0.1"], "what the file does not have any more is gone");
    desk.put("a.yaml", &service("web", "10.96.0.4"));
    assert_eq!((desk.services(), desk.problems()), (vec!["web 10.96.0.4".to_owned()], vec![]));
    desk.put("a.yaml", &without_address("web"));
    desk.put("a.yaml", "");
    assert_eq!((desk.services(), desk.problems()), (vec![], vec![]));
}

#[test]
fn slices_that_cannot_be_used_any_more_leave_the_endpoints_as_they_were() {
    let good = slice("web-1", "web");
    for bad in [good.replace("IPv4", "IPv5"), good.replace("kubernetes.io/service-name", "app")] {
        let mut desk = Desk::new();
        desk.put("a.yaml", &service("web", "10.96.0.1"));
        desk.put("b.yaml", &good);
        let endpoints = |desk: &Desk| desk.state.slices_of(&ServiceName::new("ns", "web")).count();
        desk.put("b.yaml", &bad);
        assert_eq!(endpoints(&desk), 1, "{bad}");
        assert!(desk.problems()[0].ends_with("it stays as it was before"), "{:?}", desk.problems());
        // Another name or namespace is another object.
        desk.put("b.yaml", &bad.replace("web-1", "web-2"));
        assert_eq!(endpoints(&desk), 0, "{bad}");
        assert!(desk.problems()[0].ends_with("it is left out"), "{:?}", desk.problems());
    }
}

/// Nothing says which one it was.
#[test]
fn an_object_that_loses_its_name_keeps_what_its_file_gave() {
    let mut desk = Desk::new();
    let good = format!("{}---\n{}", service("web", "10.96.0.1"), service("db", "10.96.0.2"));
    desk.put("a.yaml", &good);
    desk.put("a.yaml", &good.replace("name: web", "labels: {}").replace("10.96.0.2", "10.96.0.3"));
    assert_eq!(desk.services(), ["db 10.96.0.2", "web 10.96.0.1"]);
    let [problem] = &desk.problems()[..] else { panic!("{:?}", desk.problems()) };
    assert!(
        problem.starts_with("a.yaml:1: Service without name: ")
            && problem.ends_with("from before stays in force"),
        "{problem}"
    );
}

#[test]
fn a_file_whose_object_cannot_be_used_any_more_gives_what_it_had_when_its_turn_comes() {
    let mut desk = Desk::new();
    desk.put("a.yaml", &service("web", "10.96.0.1"));
    desk.put("b.yaml", &service("web", "10.96.0.2"));
    desk.put("b.yaml", &without_address("web"));
    assert_eq!(desk.services(), ["web 10.96.0.1"]);
    // The first file has it still, so the other one's turn has not come.
    desk.put("a.yaml", &without_address("web"));
    assert_eq!(desk.services(), ["web 10.96.0.1"]);
    assert_eq!(desk.remove("a.yaml"), [""; 0]);
    assert_eq!(desk.services(), ["web 10.96.0.2"]);
    // Good and refused in one file: the good one is used.
    desk.put("b.yaml", &format!("{}---\n{}", without_address("web"), service("web", "10.96.0.5")));
    assert_eq!(desk.services(), ["web 10.96.0.5"]);
}

#[test]
fn an_object_in_two_files_comes_from_the_first_in_path_order() {
    let mut desk = Desk::new();
    desk.put("b.yaml", &service("web", "10.96.0.2"));
    desk.put("c.yaml", &service("web", "10.96.0.3"));
    let again = desk.put("a.yaml", &service("web", "10.96.0.1"));
    assert_eq!(again, ["b.yaml"], "what it gave until now is known from its file alone");
    assert_eq!(desk.services(), ["web 10.96.0.1"]);
    assert_eq!(
        desk.problems(),
        [
            "b.yaml: Service ns/web is in a.yaml too, that one is used; remove one of the two",
            "c.yaml: Service ns/web is in a.yaml too, that one is used; remove one of the two",
        ]
    );
    // A change of a file that is not used changes nothing.
    desk.put("b.yaml", &service("web", "10.96.0.4"));
    assert_eq!(desk.services(), ["web 10.96.0.1"]);

    assert_eq!(desk.remove("a.yaml"), [""; 0]);
    assert_eq!(desk.services(), ["web 10.96.0.4"]);
    assert_eq!(desk.remove("c.yaml"), [""; 0]);
    assert_eq!(desk.remove("b.yaml"), [""; 0]);
    assert_eq!((desk.services(), desk.problems()), (vec![], vec![]));
}

/// What it gave before an earlier file came is not kept twice.
#[test]
fn a_file_that_has_not_been_read_again_is_read_when_its_turn_comes() {
    let mut desk = Desk::new();
    desk.put("b.yaml", &service("web", "10.96.0.2"));
    assert_eq!(desk.put("a.yaml", &service("web", "10.96.0.1")), ["b.yaml"]);
    assert_eq!(desk.remove("a.yaml"), ["b.yaml"]);
    assert_eq!(desk.services(), ["web 10.96.0.1"], "until then the object stays");
    assert_eq!(desk.put("b.yaml", &service("web", "10.96.0.2")), [""; 0]);
    assert_eq!(desk.services(), ["web 10.96.0.2"]);
}

#[test]
fn a_broken_file_gives_what_it_had_when_it_was_good() {
    let mut desk = Desk::new();
    desk.put("a.yaml", &service("web", "10.96.0.1"));
    desk.put("b.yaml", &service("web", "10.96.0.2"));
    desk.put("b.yaml", "kind: [");
    assert_eq!(desk.remove("a.yaml"), [""; 0]);
    assert_eq!(desk.services(), ["web 10.96.0.2"]);
    desk.put("b.yaml", &service("web", "10.96.0.3"));
    assert_eq!((desk.services(), desk.problems()), (vec!["web 10.96.0.3".to_owned()], vec![]));
}

#[test]
fn an_object_that_leaves_its_file_comes_from_the_other_one() {
    let mut desk = Desk::new();
    desk.put("a.yaml", &service("web", "10.96.0.1"));
    desk.put("b.yaml", &service("web", "10.96.0.2"));
    assert_eq!(desk.put("a.yaml", &service("db", "10.96.0.3")), [""; 0]);
    assert_eq!(desk.services(), ["db 10.96.0.3", "web 10.96.0.2"]);
    assert_eq!(desk.problems(), [""; 0]);
}

#[test]
fn an_object_twice_in_one_file_is_named_and_the_first_is_used() {
    let mut desk = Desk::new();
    desk.put("a.yaml", &format!("{}---\n{}", service("web", "10.96.0.1"), service("web", "10.96.0.2")));
    assert_eq!(desk.services(), ["web 10.96.0.1"]);
    assert_eq!(
        desk.problems(),
        ["a.yaml: Service ns/web is in this file twice, the first one is used; remove the other one"]
    );
}
