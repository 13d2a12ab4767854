//! Every story of `scenarios/`, on memory: what the maps hold after each step is the snapshot beside it.
//!
//! A new story needs its snapshot: read what `cargo insta review` shows, line by line, before it is accepted.

use std::path::{Path, PathBuf};

use lb_agent::maps::memory::{Capacities, MemMaps};
use lb_tests::scenario::{Played, Story, play, read_all};

const CAPACITIES: Capacities = Capacities {
    frontends: 64,
    addresses: 16,
    services: 32,
    slots: 4096,
    backends: 64,
    affinity: 1,
    ranges: 16,
    flows4: 1,
    flows6: 1,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

fn play_on(maps: &MemMaps, name: &str, story: &Story) -> Played {
    play(story, &mut || maps.open()).unwrap_or_else(|error| panic!("{name}: {error:#}"))
}

#[test]
fn every_story_ends_as_its_snapshot_says() {
    insta::with_settings!({ snapshot_path => folder(), prepend_module_to_snapshot => false, omit_expression => true }, {
        for (name, story) in read_all(&folder()).unwrap() {
            let played = play_on(&MemMaps::new(CAPACITIES), &name, &story);
            insta::assert_snapshot!(name, played.text);
        }
    });
}

#[test]
fn a_story_means_the_same_when_one_write_in_ten_fails() {
    for (name, story) in read_all(&folder()).unwrap() {
        let healthy = play_on(&MemMaps::new(CAPACITIES), &name, &story);
        for seed in 1..=8 {
            let maps = MemMaps::new(CAPACITIES);
            maps.faults.fail_randomly(6554, seed);
            let played = play_on(&maps, &name, &story);
            assert_eq!(played.meanings, healthy.meanings, "{name}, seed {seed}");
        }
    }
}

#[test]
fn a_story_means_the_same_when_the_agent_restarts_before_every_step() {
    for (name, mut story) in read_all(&folder()).unwrap() {
        let running = play_on(&MemMaps::new(CAPACITIES), &name, &story);
        for step in &mut story.steps {
            step.restart = true;
        }
        let restarted = play_on(&MemMaps::new(CAPACITIES), &name, &story);
        assert_eq!(restarted.meanings, running.meanings, "{name}");
    }
}
