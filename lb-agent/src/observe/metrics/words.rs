//! What metrics tell apart.

/// What became of an Event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventResult {
    /// The API server has it.
    Sent,
    /// The same was sent not long ago.
    Repeated,
    /// Too many about one object.
    Limited,
    /// The queue was full.
    Dropped,
    /// The API server did not take it.
    Failed,
}

impl EventResult {
    pub(super) const ALL: [Self; 5] =
        [Self::Sent, Self::Repeated, Self::Limited, Self::Dropped, Self::Failed];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Repeated => "repeated",
            Self::Limited => "limited",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

/// A path that probes ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probed {
    /// `/healthz`
    Healthz,
    /// `/livez`
    Livez,
    /// `/readyz`
    Readyz,
}
