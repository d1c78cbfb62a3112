//! The elements of the answer to `POST /api/v1/sources/{name}/handed-over`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A secret that came with a handshake, for the one time that it is shown.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HandedOverSecret {
    /// RFC 3339.
    pub received_at: String,
    /// The address that it came from; nothing proves that it is the provider's.
    pub sender: String,
    /// The secret.
    pub secret: String,
}
