//! Regions of `lb_slots`: a buddy allocator over powers of two.
//!
//! A run of n endpoints lives in a region of the next power of two, aligned to its size. Equal histories give equal
//! regions: the lowest free region of the smallest sufficient size is split.

use std::collections::BTreeSet;

/// The largest size is 2^16: a run counts at most 65,535 slots.
const HIGHEST_ORDER: u32 = 16;
const ORDERS: usize = HIGHEST_ORDER as usize + 1;

/// A region of slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Region {
    /// First slot; a multiple of the size.
    pub(super) base: u32,
    /// The size is 2^order slots.
    pub(super) order: u8,
}

impl Region {
    /// The region that a run of `count` slots from `base` lives in; nothing if no region begins there.
    pub(super) const fn of_run(base: u32, count: u16) -> Option<Self> {
        if count == 0 {
            return None;
        }
        Self::aligned(base, order_for(count))
    }

    /// The region of these numbers; nothing if no region of that size begins there.
    pub(super) const fn aligned(base: u32, order: u8) -> Option<Self> {
        if order as u32 > HIGHEST_ORDER || base & (size_of_order(order) - 1) != 0 {
            None
        } else {
            Some(Self { base, order })
        }
    }
}

const fn size_of_order(order: u8) -> u32 {
    1 << order
}

#[expect(clippy::cast_possible_truncation, reason = "the exponent of a 32-bit number is below 32")]
const fn order_for(count: u16) -> u8 {
    (count as u32).next_power_of_two().trailing_zeros() as u8
}

/// Free regions.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    /// Bases of the free regions of each order.
    free: [BTreeSet<u32>; ORDERS],
    /// Slots in free regions.
    left: usize,
    /// All slots.
    capacity: u32,
}

impl Slots {
    /// All of `capacity` slots are free.
    pub(super) fn new(capacity: u32) -> Self {
        let mut slots = Self { free: core::array::from_fn(|_| BTreeSet::new()), left: 0, capacity };
        let mut base = 0;
        while base < capacity {
            // The largest region that begins here and ends inside.
            let aligned = if base == 0 { HIGHEST_ORDER } else { base.trailing_zeros() };
            let fits = (capacity - base).ilog2();
            let order = aligned.min(fits).min(HIGHEST_ORDER);
            slots.free[order as usize].insert(base);
            slots.left += 1 << order;
            base += 1 << order;
        }
        slots
    }

    /// Slots in free regions. A run of that length need not fit: regions are powers of two.
    pub(super) const fn left(&self) -> usize {
        self.left
    }

    /// All slots, free or not.
    pub(super) const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Whether a run of `count` slots has room.
    pub(super) fn fits(&self, count: u16) -> bool {
        self.free.iter().skip(usize::from(order_for(count))).any(|bases| !bases.is_empty())
    }

    /// Takes a region for a run of `count` slots, which must not be 0.
    pub(super) fn take(&mut self, count: u16) -> Option<Region> {
        let wanted = order_for(count);
        let found = (usize::from(wanted)..ORDERS).find(|order| !self.free[*order].is_empty())?;
        let base = self.free[found].pop_first()?;
        for order in (usize::from(wanted)..found).rev() {
            // Keep the lower half, free the upper one.
            self.free[order].insert(base + (1 << order));
        }
        self.left -= size_of_order(wanted) as usize;
        Some(Region { base, order: wanted })
    }

    /// Takes exactly `region` if all of it is free.
    pub(super) fn reserve(&mut self, region: Region) -> bool {
        for order in usize::from(region.order)..ORDERS {
            let base = region.base & !((1_u32 << order) - 1);
            if !self.free[order].remove(&base) {
                continue;
            }
            let mut kept = base;
            for half in (usize::from(region.order)..order).rev() {
                // Descend into the half that holds the region, free the other one.
                let upper = kept + (1 << half);
                if region.base >= upper {
                    self.free[half].insert(kept);
                    kept = upper;
                } else {
                    self.free[half].insert(upper);
                }
            }
            self.left -= size_of_order(region.order) as usize;
            return true;
        }
        false
    }

    /// Gives a region back and joins it with free neighbours.
    pub(super) fn give_back(&mut self, region: Region) {
        self.left += size_of_order(region.order) as usize;
        let Region { mut base, order } = region;
        let mut order = usize::from(order);
        while order + 1 < ORDERS {
            let buddy = base ^ (1 << order);
            if !self.free[order].remove(&buddy) {
                break;
            }
            base = base.min(buddy);
            order += 1;
        }
        self.free[order].insert(base);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// First slot after the region.
    fn end(region: Region) -> u32 {
        region.base + size_of_order(region.order)
    }

    #[test]
    fn a_region_is_the_next_power_of_two_and_aligned() {
        let mut slots = Slots::new(16);
        assert_eq!(slots.take(3), Some(Region { base: 0, order: 2 }));
        assert_eq!(slots.take(1), Some(Region { base: 4, order: 0 }));
        assert_eq!(slots.take(2), Some(Region { base: 6, order: 1 }));
        assert_eq!(slots.take(8), Some(Region { base: 8, order: 3 }));
        assert_eq!(slots.left(), 1);
        assert_eq!(slots.take(2), None);
        assert_eq!(slots.take(1), Some(Region { base: 5, order: 0 }));
    }

    #[test]
    fn a_capacity_that_is_no_power_of_two_is_used_whole() {
        let mut slots = Slots::new(13);
        assert_eq!(slots.left(), 13);
        let taken: Vec<_> = core::iter::from_fn(|| slots.take(1)).collect();
        assert_eq!(taken.len(), 13);
    }

    #[test]
    fn the_longest_run_has_a_region() {
        assert_eq!(Slots::new(1 << 17).take(u16::MAX), Some(Region { base: 0, order: 16 }));
    }

    #[test]
    fn a_run_that_is_not_aligned_has_no_region() {
        assert_eq!(Region::of_run(4, 3), Some(Region { base: 4, order: 2 }));
        assert_eq!(Region::of_run(2, 3), None);
        assert_eq!(Region::of_run(0, 0), None);
    }

    proptest! {
        #[test]
        fn taken_regions_never_overlap_and_all_comes_back(
            capacity in 1_u32..5000,
            steps in prop::collection::vec((1_u16..200, any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            let mut slots = Slots::new(capacity);
            let mut taken: Vec<Region> = Vec::new();
            for (count, index, give) in steps {
                if give && !taken.is_empty() {
                    let region = taken.swap_remove(index.index(taken.len()));
                    slots.give_back(region);
                } else {
                    let fits = slots.fits(count);
                    let Some(region) = slots.take(count) else {
                        prop_assert!(!fits);
                        continue;
                    };
                    prop_assert!(fits && region.base % (1 << region.order) == 0 && 1 << region.order >= u32::from(count));
                    prop_assert!(end(region) <= capacity);
                    for other in &taken {
                        prop_assert!(region.base >= end(*other) || other.base >= end(region));
                    }
                    taken.push(region);
                }
            }
            // What a restart sees: the same regions, reserved from nothing, leave the same room.
            let mut again = Slots::new(capacity);
            for region in &taken {
                prop_assert!(again.reserve(*region));
                prop_assert!(!again.reserve(*region));
            }
            prop_assert_eq!(again.left(), slots.left());
            for region in taken {
                slots.give_back(region);
            }
            prop_assert_eq!(slots.left(), capacity as usize);
            prop_assert_eq!(&slots.free, &Slots::new(capacity).free);
        }
    }
}
