//! Histories of API objects as JSON: see `lb_tests::fuzz`.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|data: &[u8]| lb_tests::fuzz::objects(data));

// Three changes of four leave lines of JSON; the rest are libFuzzer's own, words of its dictionary and parts of other
// inputs among them.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed.is_multiple_of(4) {
        return fuzzer_mutate(data, size, max_size);
    }
    let spoiled = lb_tests::fuzz::spoil(&data[..size], &[], choice(seed));
    // What is too long loses its end: the last line, and so one step.
    let len = spoiled.len().min(max_size);
    data[..len].copy_from_slice(&spoiled[..len]);
    len
});

/// Four numbers of one: Knuth's MMIX generator, whose high bits are the random ones.
fn choice(seed: u32) -> [u32; 4] {
    let mut state = u64::from(seed);
    [(); 4].map(|()| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    })
}
