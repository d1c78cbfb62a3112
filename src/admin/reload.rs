//! The document of `POST /api/v1/reload`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A configuration that has been put in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// True; here for scripts.
    pub reloaded: bool,
    /// Doubts that did not refuse it, as `check` prints them, and destinations that are gone while forwards wait.
    pub warnings: Vec<String>,
    /// Sections and keys that differ from what is running, and take effect at the next start only.
    pub needs_restart: Vec<String>,
}
