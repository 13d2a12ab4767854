//! Indices into an array map: the lowest free one first, so that equal histories give equal ids.

use std::collections::BTreeSet;

/// Free and taken indices of one array.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    /// Free ones below `next`.
    free: BTreeSet<u32>,
    /// Every index from here on is free.
    next: u32,
    /// First index that exists.
    first: u32,
    /// First index that does not exist any more.
    end: u32,
}

impl Ids {
    /// All indices of `first..end` are free.
    pub(super) const fn new(first: u32, end: u32) -> Self {
        Self { free: BTreeSet::new(), next: first, first, end }
    }

    /// Takes the lowest free index.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop_first() {
            return Some(id);
        }
        let id = self.next;
        if id >= self.end {
            return None;
        }
        self.next = id + 1;
        Some(id)
    }

    /// Takes `id` if it exists and is free.
    pub(super) fn reserve(&mut self, id: u32) -> bool {
        if id >= self.end {
            return false;
        }
        if id >= self.next {
            self.free.extend(self.next..id);
            self.next = id + 1;
            return true;
        }
        self.free.remove(&id)
    }

    /// Whether `id` exists and nobody has it.
    pub(super) fn is_free(&self, id: u32) -> bool {
        (self.first..self.end).contains(&id) && (id >= self.next || self.free.contains(&id))
    }

    /// Gives an index back.
    pub(super) fn give_back(&mut self, id: u32) {
        self.free.insert(id);
    }

    /// Indices that exist.
    pub(super) const fn capacity(&self) -> u32 {
        self.end.saturating_sub(self.first)
    }

    /// Free indices.
    pub(super) fn left(&self) -> usize {
        self.free.len() + (self.end.saturating_sub(self.next)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_id_is_taken_first() {
        let mut ids = Ids::new(1, 5);
        assert_eq!([ids.take(), ids.take(), ids.take()], [Some(1), Some(2), Some(3)]);
        ids.give_back(2);
        assert_eq!([ids.take(), ids.take(), ids.take()], [Some(2), Some(4), None]);
    }

    #[test]
    fn reserved_ids_are_never_taken() {
        let mut ids = Ids::new(1, 6);
        assert!(ids.reserve(3));
        assert!(!ids.reserve(3), "twice");
        assert!(!ids.reserve(6), "outside");
        assert!(!ids.reserve(0), "never handed out");
        assert_eq!(
            [ids.take(), ids.take(), ids.take(), ids.take(), ids.take()],
            [Some(1), Some(2), Some(4), Some(5), None]
        );
    }

    #[test]
    fn an_id_is_free_until_it_is_taken_and_again_when_it_came_back() {
        let mut ids = Ids::new(1, 4);
        assert!(ids.is_free(1) && ids.is_free(3));
        assert!(!ids.is_free(0) && !ids.is_free(4), "outside");
        assert_eq!((ids.take(), ids.left(), ids.capacity()), (Some(1), 2, 3));
        assert!(!ids.is_free(1));
        ids.give_back(1);
        assert!(ids.is_free(1));
        assert_eq!((ids.left(), ids.capacity()), (3, 3));
    }

    #[test]
    fn an_empty_range_has_no_ids() {
        let mut ids = Ids::new(1, 0);
        assert_eq!((ids.left(), ids.capacity(), ids.take()), (0, 0, None));
    }
}
