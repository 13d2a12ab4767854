//! How long a change took from the API to the maps: one receipt per Service, for its latest change.
//!
//! ```text
//! changed    the cause, as the API tells it: a slice's last-change-trigger-time (ES-17), or the creation of a new Service
//! received   decoded, on its way to the owner
//! committed  in the maps, and programs attached that read them
//! ```

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    hash::HashMap,
    model::{Change, Event, Family, Service, ServiceName},
};

/// Triggers of a family that one Service keeps while it waits, the first ones: without room it waits for long, and its
/// slices go on changing.
const MOST_TRIGGERS: usize = 32;

/// What became of the latest change of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// When the API says that it came to the change, RFC 3339; null if it does not, or if that was before this agent started.
    pub changed: Option<String>,
    /// When the first object of the change had been decoded.
    pub received: String,
    /// When the maps followed.
    pub committed: String,
}

/// When a change happened, as the API tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Times {
    /// For people.
    changed: Option<Timestamp>,
    /// For the histogram.
    trigger: Option<(Family, Timestamp)>,
    /// What was known of the histogram's is not true any more.
    forgets: bool,
}

/// A change that is under way.
struct Waiting {
    received: Timestamp,
    changed: Option<Timestamp>,
    triggers: Vec<(Family, Timestamp)>,
}

/// Microseconds since 1970, which take half of the bytes of a [`Timestamp`].
#[derive(Clone, Copy)]
struct Done {
    /// 0 means that it is not known.
    changed: i64,
    received: i64,
    committed: i64,
}

pub(super) struct Receipts {
    started: Timestamp,
    waiting: BTreeMap<ServiceName, Waiting>,
    committed: HashMap<ServiceName, Done>,
}

impl Receipts {
    pub(super) fn new(started: Timestamp) -> Self {
        Self { started, waiting: BTreeMap::new(), committed: HashMap::default() }
    }

    /// What an object says about the time of its change. What happened before this process was there says nothing about it
    /// (ES-17). `known` is the Service of that name as it was before.
    pub(super) fn times(&self, event: &Event, known: Option<&Service>) -> Times {
        let is_ours = |time: &Timestamp| *time > self.started;
        match event {
            Event::Slice(Change::Apply(slice)) => {
                let time = slice.trigger.unix_us().and_then(|us| Timestamp::from_microsecond(us).ok());
                let time = time.filter(is_ours);
                Times { changed: time, trigger: time.map(|time| (slice.family, time)), ..Times::default() }
            }
            // The annotation tells of the change before; kube-proxy forgets it too (ES-17).
            Event::Slice(Change::Delete(_) | Change::Refuse(..)) => {
                Times { forgets: true, ..Times::default() }
            }
            // Nothing in a Service tells when it was changed, only when it was created. One that was deleted and made again
            // without our seeing it has another time.
            Event::Service(Change::Apply(service))
                if known.is_none_or(|known| known.created_s != service.created_s) =>
            {
                // Absent is i64::MAX, which is no time.
                let time = Timestamp::from_second(service.created_s).ok();
                Times { changed: time.filter(is_ours), ..Times::default() }
            }
            _ => Times::default(),
        }
    }

    /// An object with these times, which was decoded at `received`, touches `services`. A Service that waits already keeps its
    /// first times.
    pub(super) fn begin<'a>(
        &mut self,
        times: Times,
        received: Timestamp,
        services: impl Iterator<Item = &'a ServiceName>,
    ) {
        for name in services {
            let waiting = self.waiting.entry(name.clone()).or_insert_with(|| Waiting {
                received,
                changed: None,
                triggers: Vec::new(),
            });
            waiting.changed = waiting.changed.or(times.changed);
            let count = |family| waiting.triggers.iter().filter(|(of, _)| *of == family).count();
            if let Some(trigger) = times.trigger.filter(|(family, _)| count(*family) < MOST_TRIGGERS) {
                waiting.triggers.push(trigger);
            }
            if times.forgets {
                waiting.triggers.clear();
            }
        }
    }

    /// A Service was written at `now`. Returns how long its slices took, in seconds.
    pub(super) fn commit(
        &mut self,
        name: &ServiceName,
        now: Timestamp,
        is_there: bool,
    ) -> impl Iterator<Item = (Family, f64)> {
        let waiting = self.waiting.remove(name);
        if let Some(Waiting { received, changed, .. }) = &waiting
            && is_there
        {
            let done = Done {
                changed: changed.map_or(0, Timestamp::as_microsecond),
                received: received.as_microsecond(),
                committed: now.as_microsecond(),
            };
            self.committed.insert(name.clone(), done);
        } else if !is_there {
            self.committed.remove(name);
        }
        let triggers = waiting.map_or_else(Vec::new, |waiting| waiting.triggers);
        // Clocks of two machines may differ; a negative time would be refused by nobody and understood by nobody.
        triggers
            .into_iter()
            .map(move |(family, time)| (family, now.duration_since(time).as_secs_f64().max(0.0)))
    }

    /// The receipts of the Services that `is_wanted` wants, sorted.
    pub(super) fn committed(&self, is_wanted: impl Fn(&ServiceName) -> bool) -> Vec<Receipt> {
        let time = |us: i64| Timestamp::from_microsecond(us).map(|time| time.to_string()).unwrap_or_default();
        let wanted = self.committed.iter().filter(|(name, _)| is_wanted(name));
        let mut receipts: Vec<Receipt> = wanted
            .map(|(name, times)| Receipt {
                namespace: name.namespace.to_string(),
                name: name.name.to_string(),
                changed: (times.changed != 0).then(|| time(times.changed)),
                received: time(times.received),
                committed: time(times.committed),
            })
            .collect();
        receipts
            .sort_unstable_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        receipts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SliceBuilder, SliceName, Trigger};

    const STARTED_S: i64 = 1_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(STARTED_S + seconds).unwrap()
    }

    fn name() -> ServiceName {
        ServiceName::new("ns", "s")
    }

    fn slice(trigger_s: Option<i64>) -> Event {
        let mut slice = SliceBuilder::new(SliceName::new("ns", "s-1"), name(), Family::V6);
        slice.trigger(trigger_s.map_or_else(Trigger::default, |s| Trigger::at((STARTED_S + s) * 1_000_000)));
        Event::Slice(Change::Apply(slice.build()))
    }

    fn took(events: &[Event]) -> (Vec<(Family, f64)>, Vec<Receipt>) {
        let mut receipts = Receipts::new(at(0));
        for (after, event) in (2..).zip(events) {
            let times = receipts.times(event, None);
            receipts.begin(times, at(after), [name()].iter());
        }
        let took = receipts.commit(&name(), at(10), true).collect();
        (took, receipts.committed(|_| true))
    }

    /// ES-17.
    #[test]
    fn every_trigger_after_the_start_is_measured_and_the_first_is_shown() {
        let (took, receipts) = took(&[slice(Some(1)), slice(Some(4))]);
        assert_eq!(took, [(Family::V6, 9.0), (Family::V6, 6.0)]);
        assert_eq!(receipts[0].changed.as_deref(), Some("1970-01-12T13:46:41Z"));
        assert_eq!(receipts[0].received, "1970-01-12T13:46:42Z");
        assert_eq!(receipts[0].committed, "1970-01-12T13:46:50Z");
    }

    /// ES-17.
    #[test]
    fn a_service_that_waits_for_long_keeps_its_first_triggers() {
        let mut receipts = Receipts::new(at(0));
        for second in 1..1000 {
            let times = receipts.times(&slice(Some(second)), None);
            receipts.begin(times, at(second), [name()].iter());
        }
        let v4 = Times { trigger: Some((Family::V4, at(1000))), ..Times::default() };
        receipts.begin(v4, at(1000), [name()].iter());
        let took: Vec<_> = receipts.commit(&name(), at(1001), true).collect();
        assert_eq!(took.len(), MOST_TRIGGERS + 1);
        assert_eq!((took[0], took[MOST_TRIGGERS]), ((Family::V6, 1000.0), (Family::V4, 1.0)));
    }

    /// ES-17.
    #[test]
    fn a_trigger_before_the_start_and_one_of_a_deletion_are_not() {
        let deleted = Event::Slice(Change::Delete(SliceName::new("ns", "s-1")));
        for events in [&[slice(Some(-1))][..], &[slice(None)], &[slice(Some(1)), deleted]] {
            assert_eq!(took(events).0, []);
        }
        assert_eq!(took(&[slice(Some(-1))]).1[0].changed, None);
    }

    #[test]
    fn a_service_that_is_new_has_the_time_of_its_creation_and_one_that_is_gone_has_none() {
        let service = |created_s| {
            let service = Service { created_s: STARTED_S + created_s, ..Service::new(name()) };
            Event::Service(Change::Apply(service))
        };
        let (histogram, receipts) = took(&[service(1)]);
        assert_eq!((histogram, receipts[0].changed.as_deref()), (vec![], Some("1970-01-12T13:46:41Z")));
        assert_eq!(took(&[service(-500)]).1[0].changed, None);
        let mut receipts = Receipts::new(at(0));
        receipts.begin(receipts.times(&service(1), None), at(2), [name()].iter());
        assert_eq!(receipts.commit(&name(), at(3), true).count(), 0);
        assert_eq!(receipts.commit(&name(), at(4), false).count(), 0);
        assert_eq!(receipts.committed(|_| true), []);
    }

    /// ES-17: the time of its creation is no cause of a later change.
    #[test]
    fn a_later_change_of_a_service_has_no_time_unless_it_was_made_again() {
        let service = |created_s| Service { created_s: STARTED_S + created_s, ..Service::new(name()) };
        let mut receipts = Receipts::new(at(0));
        let mut change = |known: Option<&Service>, next: &Service| {
            let event = Event::Service(Change::Apply(next.clone()));
            receipts.begin(receipts.times(&event, known), at(20), [name()].iter());
            assert_eq!(receipts.commit(&name(), at(30), true).count(), 0);
            receipts.committed(|_| true).remove(0).changed
        };
        let (first, second) = (service(1), service(9));
        assert_eq!(change(None, &first).as_deref(), Some("1970-01-12T13:46:41Z"));
        assert_eq!(change(Some(&first), &first), None, "another port");
        assert_eq!(change(Some(&first), &second).as_deref(), Some("1970-01-12T13:46:49Z"));
    }
}
