//! Twin nodes: kube-proxy and lb-agent serve the same random objects alike.

use std::env;
use std::str::FromStr;

use lb_tests::control_plane::ControlPlane;
use lb_tests::needs_cluster;
use lb_tests::twin::{DetectLocal, Laboratory, Seed};

/// Changes of each seed unless `LB_TWIN_STEPS` says otherwise.
const STEPS: u32 = 5;

/// Every place where a rule says what a client on the node sees: see `lb_tests::twin`. `LB_TWIN_SEED` chooses a seed.
#[test]
fn both_proxies_serve_random_objects_alike() {
    needs_cluster!();
    let namespace = ControlPlane::shared().namespace("twin").unwrap();
    for (detect, seeds) in [(DetectLocal::Off, [1, 2, 3]), (DetectLocal::ByRange, [4, 5, 6])] {
        let seeds = number("LB_TWIN_SEED").map_or(seeds.to_vec(), |seed| vec![seed]);
        let steps = number("LB_TWIN_STEPS").unwrap_or(STEPS);
        let mut laboratory = Laboratory::start(&namespace, detect).unwrap();
        for seed in seeds {
            println!("twin: seed {seed}, {steps} steps, {detect:?}");
            let seed = Seed { seed, steps, only: number("LB_TWIN_ONLY") };
            laboratory.run(seed).unwrap_or_else(|error| panic!("{detect:?}: {error:#}"));
        }
        println!("{} destinations; differences that are known:\n{}", laboratory.looks(), laboratory.met());
    }
}

fn number<T: FromStr>(variable: &str) -> Option<T> {
    let value = env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is no number: {value}")))
}
