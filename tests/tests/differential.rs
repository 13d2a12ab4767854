//! The programs in the kernel and the pure pipeline on the host agree on every packet; `cargo xtask soak packets` compares a million.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use lb_tests::differential::Differential;
use lb_tests::needs_root;

#[test]
fn the_programs_and_the_host_agree_on_every_packet() {
    needs_root!();
    let report = Differential::new().unwrap().run(1, 10_000).unwrap();
    println!("{report}");
}
