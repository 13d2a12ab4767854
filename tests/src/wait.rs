//! Waiting for a state of the world, with a limit and a sentence for when it does not come.

use std::env;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// First pause between two looks; each following one is twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// How many times longer than it says a test waits: on a machine that is emulated. Nothing that is to be fast is told by such a wait.
const PATIENCE: &str = "LB_TESTS_PATIENCE";

fn patience() -> u32 {
    static PATIENT: OnceLock<u32> = OnceLock::new();
    *PATIENT.get_or_init(|| env::var(PATIENCE).ok().and_then(|times| times.parse().ok()).unwrap_or(1))
}

/// Waits until `condition` holds. `what` completes the sentence "waited 5s for ..".
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, limit, || if condition() { Ok(()) } else { Err("it did not happen".to_owned()) })
}

/// Waits until `look` gives a value, and returns it. What `look` gave instead, the last time, is part of the
/// error.
///
/// `look` is called at least once, and once more after the limit has passed.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T> {
    let (start, limit) = (Instant::now(), limit * patience());
    let mut pause = FIRST_PAUSE;
    loop {
        let is_last = start.elapsed() >= limit;
        match look() {
            Ok(value) => return Ok(value),
            Err(seen) if is_last => bail!("waited {limit:?} for {what}; last seen: {seen}"),
            Err(_) => sleep(pause.min(limit.saturating_sub(start.elapsed()))),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_comes_late_is_returned() {
        let mut looks = 0;
        let value = wait_for("three looks", Duration::from_secs(5), || {
            looks += 1;
            if looks == 3 { Ok("here") } else { Err(format!("look {looks}")) }
        });
        assert_eq!(value.unwrap(), "here");
    }

    #[test]
    fn the_error_says_what_how_long_and_what_was_seen() {
        let error = wait_for::<()>("rain", Duration::from_millis(5), || Err("sun".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "waited 5ms for rain; last seen: sun");
    }
}
