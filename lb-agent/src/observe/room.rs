//! How many connections are open at a time, over any number of sockets that share a room.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

/// Seats for connections. Where none is left, the connection that has been silent for longest gives up its own.
#[derive(Debug)]
pub(super) struct Room {
    most: usize,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    /// Counts what was heard of any connection.
    clock: u64,
    /// How to end a connection, by when it was heard of last.
    by_age: BTreeMap<u64, CancellationToken>,
}

/// A seat of one connection. Dropping it leaves it to another.
#[derive(Debug)]
pub(super) struct Seat {
    room: Arc<Room>,
    heard: AtomicU64,
    end: CancellationToken,
}

impl Room {
    /// An empty room with `most` seats.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, seats: Mutex::default() })
    }

    /// A seat for a connection that begins.
    pub(super) fn enter(self: &Arc<Self>) -> Seat {
        let mut seats = self.lock();
        while seats.by_age.len() >= self.most {
            let Some((_, oldest)) = seats.by_age.pop_first() else { break };
            oldest.cancel();
        }
        let end = CancellationToken::new();
        let heard = seats.put(end.clone());
        Seat { room: Arc::clone(self), heard: heard.into(), end }
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seats {
    fn put(&mut self, end: CancellationToken) -> u64 {
        self.clock += 1;
        self.by_age.insert(self.clock, end);
        self.clock
    }
}

impl Seat {
    /// A request came: the connection is the last to go now.
    pub(super) fn heard(&self) {
        let mut seats = self.room.lock();
        // One that was given up stays so.
        if let Some(end) = seats.by_age.remove(&self.heard.load(Ordering::Relaxed)) {
            self.heard.store(seats.put(end), Ordering::Relaxed);
        }
    }

    /// Waits until another connection has the seat.
    pub(super) async fn given_up(&self) {
        self.end.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.lock().by_age.remove(&self.heard.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_silent_for_longest_makes_way() {
        let room = Room::new(3);
        let mut seats: Vec<Seat> = (0..3).map(|_| room.enter()).collect();
        let gone = |seats: &[Seat]| -> Vec<usize> {
            let gone = seats.iter().enumerate().filter(|(_, seat)| seat.end.is_cancelled());
            gone.map(|(at, _)| at).collect()
        };
        seats[0].heard();
        assert_eq!(gone(&seats), [0; 0]);
        seats.push(room.enter());
        assert_eq!(gone(&seats), [1], "the first one has asked since");
        // Without a seat there is nothing to keep, and nothing to leave.
        seats[1].heard();
        seats.push(room.enter());
        assert_eq!(gone(&seats), [1, 2]);
        drop(seats.remove(1));
        assert_eq!(room.lock().by_age.len(), 3);
        seats.clear();
        assert_eq!(room.lock().by_age.len(), 0);
    }
}
