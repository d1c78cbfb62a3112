//! The name of where a forward stands, as the store writes it and operators read it.

use super::Progress;

/// Where a forward stands; [`Progress`] without its details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// To be attempted.
    Waiting,
    /// An attempt is under way.
    InFlight,
    /// The backend has accepted it.
    Delivered,
    /// A dead letter.
    Dead,
    /// An operator wanted it no more.
    Cancelled,
}

impl State {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Waiting, Self::InFlight, Self::Delivered, Self::Dead, Self::Cancelled];

    /// Its name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::InFlight => "in_flight",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state with this name.
    pub fn of_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.label() == label)
    }
}

impl From<Progress> for State {
    fn from(progress: Progress) -> Self {
        match progress {
            Progress::Waiting { .. } => Self::Waiting,
            Progress::InFlight { .. } => Self::InFlight,
            Progress::Delivered => Self::Delivered,
            Progress::Dead => Self::Dead,
            Progress::Cancelled => Self::Cancelled,
        }
    }
}
