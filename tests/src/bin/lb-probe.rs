//! Opens sockets on request: `lb_tests::probe` says why and how.

use std::io;

fn main() -> io::Result<()> {
    lb_tests::probe::worker::run(io::stdin().lock(), io::stdout().lock())
}
