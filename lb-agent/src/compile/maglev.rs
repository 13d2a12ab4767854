//! Maglev tables: packets whose ends are the same meet the same endpoint on every node, and nearly all of them still do when
//! another endpoint comes or goes.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4: each backend asks for the
//! slots of a table in an order of its own, a permutation; they take turns, and each takes the first slot in its order that is free,
//! until all are taken. So any two have equally many slots, but for one.
//!
//! The order of an endpoint is made of its address and port alone, and turns go by address, so the table depends on nothing but the
//! set. Which slot a packet meets says [`lb_common::datapath::select::spread`].
//!
//! Sizes are primes just below powers of two, which regions of slots are. They grow in steps, because another size is another table:
//! where one endpoint more or less passes a step, nearly every slot changes hands, and only flows that a node knows stay. Within a
//! step the shares differ by a hundredth at most up to 655 endpoints.
//!
//! | endpoints | slots | memory |
//! |---|---|---|
//! | 1 | 1 | 32 bytes |
//! | 2 to 10 | 1021 | 32 KiB |
//! | 11 to 163 | 16,381 | 512 KiB |
//! | more | 65,521 | 2 MiB |

use lb_common::{abi::L4Addr, hash::Hash};

use super::Target;

/// Slots of the longest table: the largest prime that a run can count.
pub const LONGEST: u16 = 65_521;
/// The sizes.
const SIZES: [u16; 3] = [1021, 16_381, LONGEST];
/// Slots for each endpoint, so that one more or less is a hundredth of its share.
const SLOTS_EACH: usize = 100;

/// Seeds of the two numbers that make the order of an endpoint.
const FIRST: u64 = 0x6669_7273_7400;
const STEP: u64 = 0x7374_6570;

/// No endpoint: there are [`LONGEST`] at most.
const FREE: u16 = u16::MAX;

/// Slots of the table of that many endpoints.
pub fn size(endpoints: usize) -> usize {
    match endpoints {
        // With one, all slots are the same.
        0 | 1 => endpoints,
        _ => {
            let fits = |size: &u16| usize::from(*size) >= SLOTS_EACH * endpoints;
            SIZES.into_iter().find(fits).unwrap_or(LONGEST).into()
        }
    }
}

/// In which order an endpoint asks for slots: a number, then always the same distance further. The number of slots is prime, so that is
/// a permutation.
struct Order {
    next: usize,
    step: usize,
}

impl Order {
    /// `size` is a prime.
    fn of(at: L4Addr, size: usize) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the remainder has 16 bits")]
        let below = |seed, limit: usize| (Hash::new(seed).at(at).finish() % limit as u64) as usize;
        Self { next: below(FIRST, size), step: below(STEP, size - 1) + 1 }
    }

    /// Goes on to the next one.
    fn advance(&mut self, size: usize) {
        self.next += self.step;
        if self.next >= size {
            self.next -= size;
        }
    }
}

/// Which of `targets` each slot has, as an index. They may be in any order, without duplicates; those beyond the first [`LONGEST`]
/// have no slot.
pub fn table(targets: &[Target]) -> Vec<u16> {
    let targets = &targets[..targets.len().min(LONGEST.into())];
    let size = size(targets.len());
    if size <= 1 {
        return vec![0; size];
    }
    let mut turns: Vec<(L4Addr, u16)> = targets.iter().map(|target| target.at.into()).zip(0..).collect();
    turns.sort_unstable();
    let mut orders: Vec<(Order, u16)> =
        turns.into_iter().map(|(at, index)| (Order::of(at, size), index)).collect();
    let mut table = vec![FREE; size];
    for turn in 0..size {
        let members = orders.len();
        let (order, index) = &mut orders[turn % members];
        while table[order.next] != FREE {
            order.advance(size);
        }
        table[order.next] = *index;
    }
    table
}
