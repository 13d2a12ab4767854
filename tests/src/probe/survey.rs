//! Many destinations at once: who answers at each, and how the others fail.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::client::Client;
use super::load::attempt;
use super::options::{Attempt, Look, Survey};
use super::protocol::{Failure, Reached, Seen, Step};

/// Does all looks of `survey`, each by one thread, and returns what they saw in the same order.
pub(super) fn run(survey: &Survey) -> Result<Vec<Seen>, Failure> {
    if !(1..=Survey::MAX_THREADS).contains(&survey.threads) {
        return Err(Failure::new(Step::Request, "the survey exceeds its bounds"));
    }
    let next = AtomicUsize::new(0);
    let seen = Mutex::new(vec![Seen::default(); survey.looks.len()]);
    thread::scope(|scope| {
        for _ in 0..survey.threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(wanted) = survey.looks.get(number) else { return };
                    let result = look(wanted);
                    seen.lock().unwrap_or_else(PoisonError::into_inner)[number] = result;
                }
            });
        }
    });
    Ok(seen.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// A new socket for each attempt.
fn look(look: &Look) -> Seen {
    let mut seen = Seen::default();
    let mut failures = 0;
    for _ in 0..look.times {
        match once(&look.attempt) {
            Ok(reached) => count(&mut seen, &reached),
            Err(failure) => {
                *seen.failed.entry(failure.errno).or_default() += 1;
                failures += 1;
                if failures >= look.failures {
                    break;
                }
            }
        }
    }
    seen
}

/// One attempt. Netfilter fails the send of a datagram that it drops (`EPERM`), and refuses it besides: what the socket hears
/// after that is part of the errno then, as in `EPERM ECONNREFUSED`.
fn once(tried: &Attempt) -> Result<Reached, Failure> {
    let Attempt::Udp(udp) = tried else { return attempt(tried) };
    let mut client = Client::udp(udp)?;
    match client.reach(false) {
        Err(failure) if failure.step == Step::Send && failure.errno == "EPERM" => {
            let heard = client.receive().err().map_or("an answer".to_owned(), |heard| heard.errno);
            Err(Failure::new(Step::Send, format!("EPERM {heard}")))
        }
        result => result,
    }
}

fn count(seen: &mut Seen, reached: &Reached) {
    let server = reached.server().to_owned();
    if let Some(answer) = &reached.answer {
        seen.sources.entry(server.clone()).or_default().insert(answer.client.ip().to_canonical());
    }
    *seen.answered.entry(server).or_default() += 1;
    let shown = reached.peer.or(reached.from);
    seen.peers.extend(shown.map(|at| SocketAddr::new(at.ip().to_canonical(), at.port())));
}
