//! Texts to objects, and a real folder.

use core::time::Duration;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rstest::rstest;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::parse::{Fault, Format, Object, Parsed, parse};
use super::{Problem, Source, run};
use crate::k8s::Interest;
use crate::model::{Change, ClusterState, Event, Names};

pub(super) const OWN_NODE: &str = "n1";

fn interest() -> Interest {
    Interest::new(OWN_NODE.into())
}

pub(super) fn yaml(text: &str) -> Parsed {
    parse(text.as_bytes(), Format::Yaml, &interest(), &mut Names::default())
}

fn names(parsed: &Parsed) -> Vec<String> {
    let name = |object: &Object| match object {
        Object::Service(service) => format!("service {}", service.name),
        Object::Slice(slice) => format!("slice {} of {}", slice.name, slice.service),
        Object::Node(node) => format!("node {}", node.name),
    };
    parsed.objects.iter().map(name).collect()
}

pub(super) fn service(name: &str, cluster_ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: ns\n\
         spec:\n  clusterIP: {cluster_ip}\n  ports:\n  - port: 80\n"
    )
}

pub(super) fn slice(name: &str, owner: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: ns\n  \
         labels:\n    kubernetes.io/service-name: {owner}\naddressType: IPv4\nports:\n- name: ''\n  port: 8080\n\
         endpoints:\n- addresses: [10.0.0.1]\n"
    )
}

fn indented(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().map(|line| format!("- {line}\n"));
    first.into_iter().chain(lines.map(|line| format!("  {line}\n"))).collect()
}

#[test]
fn a_file_may_hold_several_documents_and_other_kinds_are_ignored() {
    let other = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {replicas: many}\n";
    let namesake = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\nspec: 7\n";
    let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    let text = [
        "# nothing but a comment\n".to_owned(),
        service("web", "10.96.0.1"),
        other.to_owned(),
        slice("web-1", "web"),
        namesake.to_owned(),
        node("n2"),
        String::new(),
        node(OWN_NODE),
    ]
    .join("---\n");
    let parsed = yaml(&text);
    assert_eq!(names(&parsed), ["service ns/web", "slice ns/web-1 of ns/web", "node n1"]);
    assert!(parsed.broken.is_empty() && parsed.refused.is_empty(), "{parsed:?}");
}

#[test]
fn lists_are_read_item_by_item() {
    let items = [
        service("web", "10.96.0.1"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: 3\n".to_owned(),
        slice("web-1", "web"),
    ];
    let items: String = items.iter().map(|item| indented(item)).collect();
    let list = format!("kind: List\napiVersion: v1\nmetadata: {{resourceVersion: ''}}\nitems:\n{items}");
    let parsed = yaml(&list);
    assert_eq!(names(&parsed), ["service ns/web", "slice ns/web-1 of ns/web"], "{parsed:?}");
}

/// As the API server writes a list: the items do not say what they are.
#[test]
fn a_list_of_one_kind_needs_no_kind_in_its_items() {
    let item = "- metadata: {name: web}\n  spec: {clusterIP: 10.96.0.1}\n";
    let parsed = yaml(&format!("apiVersion: v1\nkind: ServiceList\nitems:\n{item}"));
    assert_eq!(names(&parsed), ["service default/web"]);
    let parsed = yaml("apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems: null\n");
    assert!(parsed.objects.is_empty() && parsed.broken.is_empty());
}

#[test]
fn json_is_read_as_well() {
    let text = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.1"}}
    ]}"#;
    let parsed = parse(text.as_bytes(), Format::Json, &interest(), &mut Names::default());
    assert_eq!(names(&parsed), ["service default/web"]);
}

/// SEL-1, SEL-3: what the API server would not send does not come from a file either.
#[test]
fn the_selectors_of_the_watch_hold_for_files_too() {
    let foreign = service("web", "10.96.0.1")
        .replace("  namespace: ns\n", "  labels: {service.kubernetes.io/service-proxy-name: ''}\n");
    assert_eq!(names(&yaml(&foreign)), [""; 0]);
    assert_eq!(names(&yaml(&service("web", "None"))), [""; 0]);
    let headless =
        slice("web-1", "web").replace("  labels:\n", "  labels:\n    service.kubernetes.io/headless: ''\n");
    assert_eq!(names(&yaml(&headless)), [""; 0]);
}

/// The place of an error, from the top of the file.
#[rstest]
#[case::type_of_a_value(
    Format::Yaml,
    "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: eighty\n",
    7,
    11
)]
#[case::in_a_later_document(
    Format::Yaml,
    "---\n# one\n---\n\n---\napiVersion: v1\nkind: Service\nspec:\n  clusterIPs: 7\n",
    9,
    15
)]
#[case::syntax(Format::Yaml, "apiVersion: v1\nkind: Service\nmetadata: {name: web\n", 3, 11)]
#[case::tab(Format::Yaml, "apiVersion: v1\nkind: Service\nmetadata:\n\tname: web\n", 4, 2)]
#[case::in_a_list(
    Format::Yaml,
    "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  spec:\n    ports:\n    - port: [1]\n",
    8,
    13
)]
#[case::no_kind(Format::Yaml, "# comment\n---\nmetadata: {name: web}\n", 2, 0)]
#[case::duplicate_key(Format::Yaml, "apiVersion: v1\nkind: Service\nkind: Service\n", 3, 1)]
#[case::json(Format::Json, "{\n \"apiVersion\": \"v1\",\n \"kind\": \"Service\",\n \"spec\": 7\n}\n", 4, 10)]
#[case::json_cut_off(Format::Json, "{\n \"apiVersion\": \"v1\",", 2, 20)]
fn an_error_names_line_and_column(
    #[case] format: Format,
    #[case] text: &str,
    #[case] line: u64,
    #[case] column: u64,
) {
    let parsed = parse(text.as_bytes(), format, &interest(), &mut Names::default());
    let [fault] = &parsed.broken[..] else { panic!("one fault, not {parsed:?}") };
    assert_eq!((fault.line, fault.column.unwrap_or(0)), (Some(line), column), "{fault:?}");
    assert!(!fault.reason.contains("line") && !fault.reason.contains('\n'), "{}", fault.reason);
}

#[test]
fn a_small_file_cannot_become_a_large_one_or_a_deep_one() {
    let bomb = (0..12).fold("a0: &a0 [x]\n".to_owned(), |text, n| {
        format!("{text}a{}: &a{} [{}]\n", n + 1, n + 1, format!("*a{n}, ").repeat(9).trim_end_matches(", "))
    });
    let deep =
        format!("apiVersion: v1\nkind: Service\nspec: {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    for text in [format!("apiVersion: v1\nkind: Service\n{bomb}"), deep.clone()] {
        assert_eq!(yaml(&text).broken.len(), 1);
    }
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(parse(deep.as_bytes(), Format::Json, &interest(), &mut Names::default()).broken.len(), 1);
}

/// ES-1, ES-2: well-formed, and of no use.
#[test]
fn objects_that_cannot_be_used_are_named() {
    let orphan = slice("web-1", "web").replace("kubernetes.io/service-name", "other");
    let fqdn = slice("web-2", "web").replace("IPv4", "FQDN");
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{}", indented(&orphan) + &indented(&fqdn));
    let nameless = "\n# Whose?\napiVersion: v1\nkind: Service\nspec: {clusterIP: 10.96.0.1}\n";
    let parsed = yaml(&format!("{orphan}---\n{fqdn}---\n{list}---\n{nameless}"));
    assert!(parsed.objects.is_empty());
    let said = |faults: &mut dyn Iterator<Item = &Fault>| {
        faults.map(|fault| (fault.line, fault.reason.clone())).collect::<Vec<_>>()
    };
    let no_owner = "EndpointSlice ns/web-1: the EndpointSlice has no label kubernetes.io/service-name";
    let no_family = "EndpointSlice ns/web-2: addressType \"FQDN\" is neither IPv4 nor IPv6";
    assert_eq!(
        said(&mut parsed.refused.iter().map(|(_, fault)| fault)),
        [(1, no_owner), (15, no_family), (32, no_owner), (45, no_family)]
            .map(|(line, reason)| (Some(line), reason.to_owned()))
    );
    assert_eq!(
        said(&mut parsed.broken.iter()),
        [(Some(61), "Service without name: the object has no metadata.name".to_owned())]
    );
}

/// An API server would assign an address.
#[test]
fn a_service_without_an_address_is_named() {
    let none = service("web", "10.96.0.1").replace("  clusterIP: 10.96.0.1\n", "");
    let empty = service("db", "''");
    let external = none.replace("spec:\n", "spec:\n  type: ExternalName\n  externalName: x.example\n");
    let parsed = yaml(
        &[none, empty, external, service("headless", "None"), service("bad", "10.96.0.x")].join("---\n"),
    );
    let refused: Vec<_> =
        parsed.refused.iter().map(|(_, fault)| (fault.line, fault.reason.as_str())).collect();
    let reason = "the Service has no spec.clusterIP: give it an address, or None for a headless one";
    assert_eq!(
        refused,
        [(Some(1), &*format!("Service ns/web: {reason}")), (Some(10), &*format!("Service ns/db: {reason}"))]
    );
    assert_eq!(names(&parsed), ["service ns/web", "service ns/bad"], "what has faults of its own names them");
    let json = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}"#;
    let parsed = parse(json.as_bytes(), Format::Json, &interest(), &mut Names::default());
    assert_eq!((parsed.refused[0].1.line, parsed.objects.len()), (None, 0));
}

/// A running source on a real folder.
struct Running {
    folder: tempfile::TempDir,
    events: mpsc::Receiver<Event>,
    problems: watch::Receiver<Vec<Problem>>,
    state: ClusterState,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let path = folder.path().join("manifests");
        let (sender, events) = mpsc::channel(4);
        let (publish, problems) = watch::channel(Vec::new());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(path, Arc::new(interest()), sender, publish, shutdown.clone()));
        Self { folder, events, problems, state: ClusterState::new(OWN_NODE.into()), shutdown, task }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("manifests").join(name)
    }

    /// Takes in events until the services are as wanted.
    async fn until(&mut self, want: &[&str]) {
        let wait = async {
            while self.services() != want {
                let event = self.events.recv().await.expect("the source runs");
                self.state.apply(event, &mut std::collections::BTreeSet::new());
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
        assert!(waited.is_ok(), "{:?} instead of {want:?}, {:?}", self.services(), self.problems.borrow());
    }

    async fn until_complete(&mut self) {
        while !self.state.is_complete() {
            let event =
                tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await.unwrap().unwrap();
            self.state.apply(event, &mut std::collections::BTreeSet::new());
        }
    }

    async fn until_problems(&mut self, count: usize) -> Vec<String> {
        let wait = self.problems.wait_for(|problems| problems.len() == count);
        let found = tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time").unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    fn services(&self) -> Vec<String> {
        self.state.services().map(|name| name.name.to_string()).collect()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.task).await.expect("it stops").unwrap();
    }
}

fn with_folder(folder: &Path) {
    fs::create_dir(folder.join("manifests")).unwrap();
}

#[tokio::test]
async fn changes_of_files_become_events() {
    let mut running = Running::start(|folder| {
        with_folder(folder);
        fs::write(folder.join("manifests/web.yaml"), service("web", "10.96.0.1")).unwrap();
        fs::write(folder.join("manifests/notes.txt"), "kind: [").unwrap();
        fs::write(folder.join("manifests/.hidden.yaml"), service("hidden", "10.96.0.9")).unwrap();
    });
    running.until_complete().await;
    assert_eq!(running.services(), ["web"]);

    fs::write(running.path("db.yml"), service("db", "10.96.0.2")).unwrap();
    running.until(&["db", "web"]).await;
    // As editors do it: beside the file, then over it.
    fs::write(running.path(".new"), service("dns", "10.96.0.3")).unwrap();
    fs::rename(running.path(".new"), running.path("db.yml")).unwrap();
    running.until(&["dns", "web"]).await;
    fs::remove_file(running.path("web.yaml")).unwrap();
    running.until(&["dns"]).await;

    fs::write(running.path("db.yml"), "kind: [").unwrap();
    let problems = running.until_problems(1).await;
    assert!(problems[0].contains("db.yml:1:"), "{problems:?}");
    fs::write(running.path("db.yml"), service("dns", "10.96.0.4")).unwrap();
    running.until_problems(0).await;
    running.stop().await;
}

/// A `ConfigMap` volume: files are links into a folder that is replaced by renaming a link.
#[tokio::test]
async fn a_swapped_link_is_seen() {
    let version = |folder: &Path, name: &str, text: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("web.yaml"), text).unwrap();
        symlink(name, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    let mut running = Running::start(|folder| {
        with_folder(folder);
        let folder = folder.join("manifests");
        version(&folder, "..1", &service("one", "10.96.0.1"));
        symlink("..data/web.yaml", folder.join("web.yaml")).unwrap();
    });
    running.until_complete().await;
    assert_eq!(running.services(), ["one"]);
    version(&running.path(""), "..2", &service("two", "10.96.0.1"));
    running.until(&["two"]).await;
    running.stop().await;
}

#[tokio::test]
async fn a_missing_folder_is_named_waited_for_and_deletes_nothing() {
    let mut running = Running::start(|_| {});
    let problems = running.until_problems(1).await;
    assert!(problems[0].contains("the folder cannot be read"), "{problems:?}");
    with_folder(running.folder.path());
    fs::write(running.path("web.yaml"), service("web", "10.96.0.1")).unwrap();
    running.until_complete().await;
    assert_eq!(running.services(), ["web"]);

    fs::rename(running.path(""), running.folder.path().join("away")).unwrap();
    running.until_problems(1).await;
    assert!(running.events.try_recv().is_err(), "nothing is deleted");
    with_folder(running.folder.path());
    fs::write(running.path("db.yaml"), service("db", "10.96.0.1")).unwrap();
    running.until(&["db"]).await;
    running.stop().await;
}

/// Folders, pipes and links to themselves under the name of a manifest: named once, and the others go on.
#[tokio::test]
async fn what_is_no_file_is_named_and_not_waited_for() {
    let pipe = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut running = Running::start(|folder| {
        with_folder(folder);
        let folder = folder.join("manifests");
        fs::write(folder.join("web.yaml"), service("web", "10.96.0.1")).unwrap();
        fs::create_dir(folder.join("folder.yaml")).unwrap();
        pipe(&folder.join("pipe.yaml"));
        symlink("link.yaml", folder.join("link.yaml")).unwrap();
    });
    running.until_complete().await;
    assert_eq!(running.services(), ["web"]);
    let problems = running.until_problems(3).await;
    for (name, problem) in ["folder.yaml: ", "link.yaml: ", "pipe.yaml: "].into_iter().zip(&problems) {
        assert!(problem.contains(&format!("{name}the file cannot be read: ")), "{problem}");
    }
    // In place of what was good.
    for make in [&pipe as &dyn Fn(&Path), &|path| fs::create_dir(path).unwrap()] {
        fs::write(running.path("db.yaml"), service("db", "10.96.0.2")).unwrap();
        running.until(&["db", "web"]).await;
        running.until_problems(3).await;
        fs::remove_file(running.path("db.yaml")).unwrap();
        make(&running.path("db.yaml"));
        let problems = running.until_problems(4).await;
        assert!(problems[0].contains("db.yaml: ") && problems[0].contains("from before"), "{problems:?}");
        if running.path("db.yaml").is_dir() {
            fs::remove_dir(running.path("db.yaml")).unwrap();
        } else {
            fs::remove_file(running.path("db.yaml")).unwrap();
        }
        running.until(&["web"]).await;
    }
    running.stop().await;
}

/// Nothing is left to wait for, so the folder is looked at no more often than one in which nothing happens.
#[tokio::test]
async fn a_folder_in_place_of_a_file_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.yaml");
    fs::write(&path, service("web", "10.96.0.1")).unwrap();
    let (events, _events) = mpsc::channel(64);
    let (publish, problems) = watch::channel(Vec::new());
    let mut source = Source::new(folder.path().into(), Arc::new(interest()), events, publish);
    for is_file in [true, false] {
        if !is_file {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }
        for settling in [1, 0, 0] {
            source.look().await.ok().unwrap();
            assert_eq!(
                (source.settling.len(), source.read.len()),
                (settling, usize::from(!is_file || settling == 0))
            );
        }
        assert_eq!(problems.borrow().len(), usize::from(!is_file));
    }
}

/// A log that someone named like a manifest, for example.
#[tokio::test]
async fn a_file_that_is_written_all_the_time_does_not_hold_up_the_start() {
    let mut running = Running::start(|folder| {
        with_folder(folder);
        fs::write(folder.join("manifests/web.yaml"), service("web", "10.96.0.1")).unwrap();
        fs::write(folder.join("manifests/log.yaml"), "").unwrap();
    });
    let log = running.path("log.yaml");
    let end = CancellationToken::new();
    let guard = end.clone().drop_guard();
    let writer = tokio::spawn(async move {
        while !end.is_cancelled() {
            fs::File::options().append(true).open(&log).unwrap().write_all(b"# line\n").unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    running.until_complete().await;
    assert_eq!(running.services(), ["web"]);
    drop(guard);
    writer.await.unwrap();
    running.stop().await;
}

/// A writer that takes its time is not reported, and its half does not delete the other half.
#[tokio::test]
async fn a_file_that_is_being_written_is_read_when_it_is_done() {
    let whole = format!("{}---\n{}", service("web", "10.96.0.1"), service("db", "10.96.0.2"));
    let mut running = Running::start(|folder| {
        with_folder(folder);
        fs::write(folder.join("manifests/all.yaml"), &whole).unwrap();
    });
    running.until_complete().await;
    assert_eq!(running.services(), ["db", "web"]);
    for end in (10..=whole.len()).step_by(30) {
        fs::write(running.path("all.yaml"), &whole[..end]).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fs::write(running.path("all.yaml"), &whole).unwrap();
    fs::write(running.path("mark.yaml"), service("mark", "10.96.0.3")).unwrap();
    while running.services() != ["db", "mark", "web"] {
        let event = running.events.recv().await.unwrap();
        assert!(!matches!(event, Event::Service(Change::Delete(_))), "{event:?}");
        running.state.apply(event, &mut std::collections::BTreeSet::new());
    }
    assert!(running.problems.borrow().is_empty(), "{:?}", running.problems.borrow());
    running.stop().await;
}

/// SEL-2: adding a label of SEL-1 is a deletion and removing it an addition.
#[tokio::test]
async fn a_label_that_comes_and_goes_takes_the_service_away_and_gives_it_back() {
    let labelled =
        |labels: &str| service("web", "10.96.0.1").replace("metadata:\n", &format!("metadata:\n{labels}"));
    let mut running = Running::start(with_folder);
    for label in ["service-proxy-name: other", "service-proxy-name: ''", "headless: ''"] {
        fs::write(running.path("web.yaml"), labelled("")).unwrap();
        running.until(&["web"]).await;
        let with = labelled(&format!("  labels: {{service.kubernetes.io/{label}}}\n"));
        assert!(with.contains("labels"), "{with}");
        fs::write(running.path("web.yaml"), with).unwrap();
        running.until(&[]).await;
    }
    running.stop().await;
}
