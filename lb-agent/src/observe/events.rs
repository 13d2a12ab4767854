//! Kubernetes Events: what is worth one, how often, and a queue that blocks nobody (2.23).
//!
//! ```text
//! owner, servers  --Note-->  Recorder  --queue-->  k8s/events.rs: Filter, then the API server
//! ```
//!
//! Whoever records has logged it too: without an API server an Event goes nowhere.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::metrics::{EventResult, Metrics};
use crate::model::ServiceName;

/// Notes that wait for the API server; more are dropped and counted.
const QUEUE: usize = 1024;
/// The same text about the same object is not sent again before.
const SILENCE: Duration = Duration::from_mins(10);
/// Events about one object in one go, as in client-go (`record.EventCorrelator`).
const BURST: u32 = 25;
/// Then one more after each such time.
const REFILL: Duration = Duration::from_mins(5);

/// Between two Events of a start.
const BRISK: Duration = Duration::from_millis(200);
/// Events about everything in one go; then one each [`STEADY`].
const BURST_OF_ALL: u32 = 25;
/// A fault of the whole cluster has every node send as many Events as it has Services.
const STEADY: Duration = Duration::from_secs(2);

/// What an Event is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// The own Node.
    Node,
    /// A Service.
    Service(ServiceName),
}

/// An Event that was not sent yet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Note {
    /// About what.
    pub subject: Subject,
    /// `Warning`, else `Normal`.
    pub is_warning: bool,
    /// For programs: one word, as in 2.23.
    pub reason: &'static str,
    /// What was attempted.
    pub action: &'static str,
    /// For people.
    pub text: String,
}

impl Note {
    /// A warning about the own Node.
    pub fn node(reason: &'static str, action: &'static str, text: String) -> Self {
        Self { subject: Subject::Node, is_warning: true, reason, action, text }
    }

    /// A warning about a Service.
    pub fn service(service: &ServiceName, reason: &'static str, action: &'static str, text: String) -> Self {
        Self { subject: Subject::Service(service.clone()), is_warning: true, reason, action, text }
    }

    /// The agent has started.
    pub fn starting() -> Self {
        let text = format!("lb-agent {} is starting", env!("CARGO_PKG_VERSION"));
        Self { subject: Subject::Node, is_warning: false, reason: "Starting", action: "Start", text }
    }
}

/// A note on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// What is told.
    pub note: Note,
    /// When it happened, which may be long before it is sent.
    pub at: Timestamp,
}

/// Takes notes; a clone takes them for the same queue.
#[derive(Clone, Debug)]
pub struct Recorder {
    notes: Option<Sender<Recorded>>,
    metrics: Arc<Metrics>,
}

impl Recorder {
    /// A recorder, and the end of its queue.
    pub fn new(metrics: Arc<Metrics>) -> (Self, Receiver<Recorded>) {
        let (notes, queue) = channel(QUEUE);
        (Self { notes: Some(notes), metrics }, queue)
    }

    /// A recorder without an API server.
    pub const fn nowhere(metrics: Arc<Metrics>) -> Self {
        Self { notes: None, metrics }
    }

    /// Whether at least half of the queue is free.
    pub fn is_half_empty(&self) -> bool {
        self.notes.as_ref().is_none_or(|notes| notes.capacity() >= QUEUE / 2)
    }

    /// Leaves a note of what happens now. Never waits: where the queue is full the note is dropped, and that is counted.
    pub fn record(&self, note: Note) {
        // Who could tell again uses the answer of `offer`.
        let _dropped = self.offer(note, Timestamp::now());
    }

    /// The same of what happened `at` some time; a note that was dropped comes back.
    ///
    /// # Errors
    /// The note, if the queue is full.
    pub fn offer(&self, note: Note, at: Timestamp) -> Result<(), Note> {
        let Some(notes) = &self.notes else { return Ok(()) };
        notes.try_send(Recorded { note, at }).map_err(|error| {
            self.metrics.event(EventResult::Dropped);
            error.into_inner().note
        })
    }
}

/// What a [`Filter`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// It may be sent.
    Send,
    /// The same was sent less than ten minutes ago.
    Repeated,
    /// Too many about this object.
    Limited,
}

/// Decides which notes are sent.
#[derive(Debug, Default)]
pub struct Filter {
    sent: BTreeMap<Note, Instant>,
    tokens: BTreeMap<Subject, Tokens>,
}

#[derive(Clone, Copy, Debug)]
struct Tokens {
    left: u32,
    /// When the last one was added.
    since: Instant,
}

impl Tokens {
    fn refill(&mut self, now: Instant) {
        while self.left < BURST && now.saturating_duration_since(self.since) >= REFILL {
            self.left += 1;
            self.since += REFILL;
        }
    }
}

impl Filter {
    /// Whether `note` may be sent at `now`. What may is remembered as sent.
    pub fn admit(&mut self, note: &Note, now: Instant) -> Admission {
        self.sent.retain(|_, at| now.saturating_duration_since(*at) < SILENCE);
        self.tokens.retain(|_, tokens| {
            tokens.refill(now);
            tokens.left < BURST
        });
        if self.sent.contains_key(note) {
            return Admission::Repeated;
        }
        let tokens = self.tokens.entry(note.subject.clone()).or_insert(Tokens { left: BURST, since: now });
        if tokens.left == 0 {
            return Admission::Limited;
        }
        tokens.left -= 1;
        self.sent.insert(note.clone(), now);
        Admission::Send
    }
}

/// How fast Events are sent, whatever they are about: a burst, then a steady trickle. Pure.
#[derive(Debug)]
pub struct Budget {
    left: u32,
    /// When the last one was added or used.
    since: Instant,
}

impl Budget {
    /// A whole burst.
    pub const fn new(now: Instant) -> Self {
        Self { left: BURST_OF_ALL, since: now }
    }

    /// How long the next Event waits at `now`. `share`, in 0..1, is random: all nodes have begun at the same moment.
    pub fn pause(&mut self, now: Instant, share: f64) -> Duration {
        while self.left < BURST_OF_ALL && now.saturating_duration_since(self.since) >= STEADY {
            self.left += 1;
            self.since += STEADY;
        }
        if self.left == BURST_OF_ALL {
            self.since = now;
        }
        if self.left > 0 {
            self.left -= 1;
            return BRISK.mul_f64(0.5 + share);
        }
        let pause = STEADY.mul_f64(0.5 + share);
        self.since = now + pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(service: &str, text: &str) -> Note {
        Note::service(&ServiceName::new("ns", service), "InvalidField", "Program", text.to_owned())
    }

    #[test]
    fn the_same_text_about_the_same_object_is_sent_once_in_ten_minutes() {
        let (mut filter, begin) = (Filter::default(), Instant::now());
        let mut at =
            |seconds, service, text| filter.admit(&note(service, text), begin + Duration::from_secs(seconds));
        assert_eq!(at(0, "a", "x"), Admission::Send);
        assert_eq!(at(599, "a", "x"), Admission::Repeated);
        assert_eq!(at(599, "a", "y"), Admission::Send);
        assert_eq!(at(599, "b", "x"), Admission::Send);
        assert_eq!(at(600, "a", "x"), Admission::Send);
    }

    #[test]
    fn one_object_cannot_fill_the_event_store() {
        let (mut filter, begin) = (Filter::default(), Instant::now());
        let mut at = |service, text: u32, now| filter.admit(&note(service, &text.to_string()), now);
        for text in 0..BURST {
            assert_eq!(at("a", text, begin), Admission::Send);
        }
        assert_eq!(at("a", 100, begin), Admission::Limited);
        assert_eq!(at("b", 100, begin), Admission::Send);
        assert_eq!(at("a", 101, begin + REFILL), Admission::Send);
        assert_eq!(at("a", 102, begin + REFILL), Admission::Limited);
    }

    #[test]
    fn a_fault_of_the_whole_cluster_does_not_flood_the_api_server() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        let mut now = begin;
        for _ in 0..BURST_OF_ALL {
            now += budget.pause(now, 0.5);
        }
        assert!(now.duration_since(begin) < Duration::from_secs(10), "a start is told of soon");
        let (mut count, end) = (0, now + Duration::from_mins(10));
        while now < end {
            now += budget.pause(now, f64::from(count % 10) / 10.0);
            count += 1;
        }
        assert!((290..=330).contains(&count), "{count} in ten minutes");
        let mut pause = |share| budget.pause(now, share);
        assert_ne!(pause(0.1), pause(0.9), "nodes drift apart");
        now += Duration::from_mins(10);
        assert!((0..BURST_OF_ALL).all(|_| budget.pause(now, 0.9) < Duration::from_secs(1)), "after quiet");
        assert!(budget.pause(now, 0.0) >= Duration::from_secs(1));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let metrics = Arc::new(Metrics::new(std::path::Path::new("/nowhere")));
        let (recorder, queue) = Recorder::new(Arc::clone(&metrics));
        for text in 0..QUEUE + 3 {
            recorder.record(note("a", &text.to_string()));
        }
        assert_eq!(queue.len(), QUEUE);
        let text = metrics.text().unwrap();
        assert!(text.contains("lbagent_events_total{result=\"dropped\"} 3\n"), "{text}");
    }
}
