//! Tests that lack something say so, loudly, when they cannot run.
//!
//! The test harness of cargo has no "skipped" at run time: a test that returns counts as passed. So the test
//! prints one line that begins with `NOT RUN:`, past the harness' capture of output, and whoever summarises a
//! run (`cargo xtask test`) counts those lines.

use std::io::{self, Write as _};

use nix::unistd::geteuid;

/// Returns from the calling test, with a `NOT RUN` line, unless it runs as root.
///
/// In a test that returns a value, give it: `needs_root!(Ok(()))`.
#[macro_export]
macro_rules! needs_root {
    () => {
        $crate::needs_root!(())
    };
    ($value:expr) => {
        $crate::needs!($crate::privilege::is_root(), "root", $value)
    };
}

/// Returns from the calling test, with a `NOT RUN` line, unless a condition holds. The text completes
/// "needs ..": `needs!(has_mptcp, "MPTCP in the kernel")`. A third argument is the value to return.
#[macro_export]
macro_rules! needs {
    ($condition:expr, $what:expr) => {
        $crate::needs!($condition, $what, ())
    };
    ($condition:expr, $what:expr, $value:expr) => {
        if !$condition {
            $crate::privilege::say_not_run(::std::any::type_name_of_val(&|| ()), $what);
            return $value;
        }
    };
}

/// Whether the effective user is root.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Prints `NOT RUN: <test>: needs <what>`. `place` is the type name of a closure in the test.
pub fn say_not_run(place: &str, what: &str) {
    let test = place.trim_end_matches("::{{closure}}");
    let test = test.split_once("::").map_or(test, |(_crate, path)| path);
    // Not eprintln!: the harness captures that and shows it for failed tests only. A closed stderr leaves
    // nobody to tell.
    drop(writeln!(io::stderr(), "NOT RUN: {test}: needs {what}"));
}
