//! The agent follows a real API server: what is written there reaches real sockets, whatever becomes of the connection.
//!
//! | module | rule |
//! |---|---|
//! | `objects` | what is written is programmed: lists, additions, changes, deletions, labels, owners of slices |
//! | `pods` | endpoints are those that the real controller makes of Pods |
//! | `rollouts` | Pods, types, families and preferences change as in a cluster, and no connection fails that need not |
//! | `watches` | a list or watch that fails is taken up again, and loses and breaks nothing |
//! | `outages` | traffic outlives the API server and the agent, and what was missed is found |
//! | `events` | what cannot be programmed is an Event on its Service, naming why |
//! | `unusable` | objects of which nothing can be used are named to those whom they concern |
//! | `access` | addresses, credentials, certificates, rights and the own Node: what is wrong is named |
//!
//! Every agent follows the whole cluster, so all of them see each other's objects; every test has its own node,
//! namespace and addresses.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod access;
mod events;
mod objects;
mod outages;
mod pods;
mod rollouts;
mod unusable;
mod watches;
mod world;
