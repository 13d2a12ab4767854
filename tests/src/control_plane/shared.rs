//! The control plane that all tests of a process share, and how tests say that they are left out.

use std::io::{self, Write as _};
use std::sync::OnceLock;

use super::ControlPlane;

/// Set to anything but `0` or nothing, it leaves out the tests that need a control plane.
pub const NO_CLUSTER_VARIABLE: &str = "LB_TESTS_NO_CLUSTER";

/// Returns from the calling test, with a `NOT RUN` line, unless it runs as root and
/// `LB_TESTS_NO_CLUSTER` is not set.
///
/// In a test that returns a value, give it: `needs_cluster!(Ok(()))`.
#[macro_export]
macro_rules! needs_cluster {
    () => {
        $crate::needs_cluster!(())
    };
    ($value:expr) => {
        $crate::needs_root!($value);
        if $crate::control_plane::is_left_out(::std::any::type_name_of_val(&|| ())) {
            return $value;
        }
    };
}

impl ControlPlane {
    /// The control plane of this test process, started by the first caller.
    ///
    /// # Panics
    /// When it cannot be started; every later test fails with the same message.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Result<ControlPlane, String>> = OnceLock::new();
        match SHARED.get_or_init(|| Self::start().map_err(|error| format!("{error:#}"))) {
            Ok(control_plane) => control_plane,
            Err(error) => panic!("no control plane: {error}"),
        }
    }
}

/// Whether the test named by the path `place` is not to run; it has been said then.
#[doc(hidden)]
pub fn is_left_out(place: &str) -> bool {
    let is_set = std::env::var_os(NO_CLUSTER_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0");
    if is_set {
        let test = place.trim_end_matches("::{{closure}}");
        let test = test.split_once("::").map_or(test, |(_crate, path)| path);
        let line = format!("NOT RUN: {test}: needs a control plane, {NO_CLUSTER_VARIABLE} is set\n");
        // Not eprintln!: the harness captures that. In one write, because other tests write as well. A closed
        // stderr leaves nobody to tell.
        drop(io::stderr().write_all(line.as_bytes()));
    }
    is_set
}
