//! Which file each object comes from, and which events follow when a file changes. Pure.
//!
//! Of objects only names are kept here: a large folder is in memory once, in the model. An object that several files have is
//! kept for each file that does not give it, because when its turn comes that file may be broken.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::Problem;
use super::key::Key;
use super::parse::{Fault, Object, Parsed};
use crate::model::{Change, Event};

fn apply(object: Object) -> Event {
    match object {
        Object::Service(service) => Event::Service(Change::Apply(service)),
        Object::Slice(slice) => Event::Slice(Change::Apply(slice)),
        Object::Node(node) => Event::Node(Change::Apply(node)),
    }
}

#[derive(Default)]
struct File {
    /// Its content was taken in, whole, at some time.
    was_good: bool,
    /// What is wrong with its present content.
    problems: Vec<Problem>,
}

/// All files of a folder.
#[derive(Default)]
pub(super) struct Files {
    /// Files that were taken in.
    known: BTreeMap<Arc<Path>, File>,
    /// The file each object comes from: of those that have it the first in path order.
    owners: HashMap<Key, Arc<Path>>,
    /// Objects that a file has and an earlier one too, as the file had them when it was good. `None` until the file has
    /// been read again: it gave the object before an earlier file came.
    losers: BTreeMap<(Key, Arc<Path>), Option<Object>>,
}

impl Files {
    /// Takes in the content of a file, new or changed.
    ///
    /// A broken file keeps what it gave when it was good; one that has never been good gives what can be read of it. An
    /// object that was good and cannot be used as it is now stays as it was: its file still says that it exists.
    /// Returns the files that have to be read again.
    pub(super) fn put(
        &mut self,
        path: &Arc<Path>,
        parsed: Parsed,
        events: &mut Vec<Event>,
    ) -> BTreeSet<Arc<Path>> {
        let was_good = self.known.get(path).map(|file| file.was_good);
        let keeps = !parsed.broken.is_empty() && was_good == Some(true);
        let staying = self.staying(path, &parsed, keeps);
        let file = File {
            was_good: was_good == Some(true) || parsed.broken.is_empty(),
            problems: problems(path, &parsed, keeps, &staying),
        };
        self.known.insert(Arc::clone(path), file);
        if keeps {
            return BTreeSet::new();
        }
        let mut before: HashSet<Key> = if was_good.is_some() { self.keys_of(path) } else { HashSet::new() };
        before.retain(|key| !staying.contains(key));
        let mut here = HashSet::new();
        let mut again = BTreeSet::new();
        for object in parsed.objects {
            let key = Key::of(&object);
            before.remove(&key);
            if !here.insert(key.clone()) {
                let reason =
                    format!("{key} is in this file twice, the first one is used; remove the other one");
                self.add_problem(path, reason);
                continue;
            }
            again.extend(self.claim(key, path, object, events));
        }
        self.losers.retain(|(key, loser), _| loser != path || here.contains(key) || staying.contains(key));
        again.append(&mut self.release(before, events));
        again
    }

    /// The objects that cannot be used as `parsed` has them, and that `path` has had before.
    fn staying(&self, path: &Arc<Path>, parsed: &Parsed, keeps: bool) -> HashSet<Key> {
        if parsed.refused.is_empty() {
            return HashSet::new();
        }
        let usable: HashSet<Key> =
            if keeps { HashSet::new() } else { parsed.objects.iter().map(Key::of).collect() };
        let had = |key: &Key| {
            self.owners.get(key).is_some_and(|owner| owner == path)
                || self.losers.contains_key(&(key.clone(), Arc::clone(path)))
        };
        let refused = parsed.refused.iter().map(|(key, _)| key);
        refused.filter(|key| !usable.contains(key) && had(key)).cloned().collect()
    }

    /// Takes note that a file is gone. Returns the files that have to be read again.
    pub(super) fn remove(&mut self, path: &Path, events: &mut Vec<Event>) -> BTreeSet<Arc<Path>> {
        self.known.remove(path);
        self.losers.retain(|(_, loser), _| **loser != *path);
        let keys = self.keys_of(path);
        self.release(keys, events)
    }

    /// Everything that is wrong, sorted by path.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let duplicates = self.losers.keys().map(|(key, path)| {
            let used = self.owners.get(key).map_or_else(String::new, |owner| owner.display().to_string());
            let reason = format!("{key} is in {used} too, that one is used; remove one of the two");
            Problem::of_file(path, reason)
        });
        let own = self.known.values().flat_map(|file| file.problems.iter().cloned());
        let mut all: Vec<Problem> = own.chain(duplicates).collect();
        all.sort_unstable();
        all
    }

    /// Takes in what `path` has under `key`. Returns the file that gave it until now, if that has to be read again.
    fn claim(
        &mut self,
        key: Key,
        path: &Arc<Path>,
        object: Object,
        events: &mut Vec<Event>,
    ) -> Option<Arc<Path>> {
        let before = self.owners.get(&key).filter(|owner| *owner != path).cloned();
        if before.as_ref().is_some_and(|owner| owner < path) {
            self.losers.insert((key, Arc::clone(path)), Some(object));
            return None;
        }
        self.losers.remove(&(key.clone(), Arc::clone(path)));
        self.owners.insert(key.clone(), Arc::clone(path));
        events.push(apply(object));
        if let Some(loser) = &before {
            self.losers.insert((key, Arc::clone(loser)), None);
        }
        before
    }

    /// Objects that their file does not have any more: the next file that has one gives it. Where its content is not known
    /// the object stays as it was until the file has been read again.
    fn release(&mut self, keys: HashSet<Key>, events: &mut Vec<Event>) -> BTreeSet<Arc<Path>> {
        let mut again = BTreeSet::new();
        for key in keys {
            let from_first = (key.clone(), Arc::from(Path::new("")));
            let next = self.losers.range(from_first..).next().map(|(next, _)| next.clone());
            let Some(next) = next.filter(|(other, _)| *other == key) else {
                self.owners.remove(&key);
                events.push(key.delete());
                continue;
            };
            match self.losers.remove(&next).flatten() {
                Some(object) => events.push(apply(object)),
                None => drop(again.insert(Arc::clone(&next.1))),
            }
            self.owners.insert(key, next.1);
        }
        again
    }

    fn keys_of(&self, path: &Path) -> HashSet<Key> {
        self.owners.iter().filter(|(_, owner)| ***owner == *path).map(|(key, _)| key.clone()).collect()
    }

    fn add_problem(&mut self, path: &Arc<Path>, reason: String) {
        if let Some(file) = self.known.get_mut(path) {
            file.problems.push(Problem::of_file(path, reason));
        }
    }
}

fn problems(path: &Arc<Path>, parsed: &Parsed, keeps: bool, staying: &HashSet<Key>) -> Vec<Problem> {
    let broken = parsed.broken.iter().map(|fault| {
        let used =
            if keeps { "the content from before stays in force" } else { "what cannot be read is left out" };
        (fault, format!("{}; {used}", fault.reason))
    });
    let refused = parsed.refused.iter().map(|(key, fault)| {
        let used = if staying.contains(key) { "it stays as it was before" } else { "it is left out" };
        (fault, format!("{}; {used}", fault.reason))
    });
    let problem = |(fault, reason): (&Fault, String)| Problem {
        path: Arc::clone(path),
        line: fault.line,
        column: fault.column,
        reason,
    };
    broken.chain(refused).map(problem).collect()
}
