//! What applications see of socket load balancing: real sockets, in namespaces and a child cgroup, under a real agent.
//!
//! | module | rule |
//! |---|---|
//! | `cells` | every kind of socket reaches every kind of frontend and is shown the frontend |
//! | `connects` | every way to connect: MPTCP, fast open, bound, non-blocking, self, again |
//! | `refusal` | a Service without endpoints refuses, by hook and by address |
//! | `datagrams` | an unconnected UDP socket keeps its backends |
//! | `stale` | UDP flows end with their backend, and stay with one that serves |
//! | `affinity` | a client keeps its backend where its Service wants that |
//! | `algorithms` | which backend the next connection meets |
//! | `scope` | whose sockets are served |
//! | `restarts` | traffic goes on whatever happens to the agent |
//! | `bad_input` | one clear error, and what worked goes on |
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod affinity;
mod algorithms;
mod bad_input;
mod cells;
mod connects;
mod datagrams;
mod legacy;
mod park;
mod refusal;
mod restarts;
mod scope;
mod stale;
