//! The document of `GET /api/v1/status`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the gateway stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The binary's version.
    pub version: String,
    /// RFC 3339.
    pub started_at: String,
    /// Whether deliveries can be accepted.
    pub ready: bool,
    /// Why not.
    pub not_ready_because: Option<String>,
    /// Whether the latest load of the configuration succeeded.
    pub config_loaded: bool,
    /// The store.
    pub store: StoreStatus,
    /// The files of `listen.tls` that hold certificates; empty without TLS.
    pub certificates: Vec<CertificateStatus>,
    /// In the order of the configuration.
    pub sources: Vec<SourceStatus>,
    /// In the order of the configuration; behind them those that are in it no more and have forwards.
    pub destinations: Vec<DestinationStatus>,
}

/// How the store stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// `sqlite`.
    pub engine: String,
    /// Size of its files.
    pub bytes: u64,
}

/// When what a certificate file holds expires.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CertificateStatus {
    /// Its key, such as `listen.tls.cert`.
    pub key: String,
    /// Where it is.
    pub file: String,
    /// RFC 3339; of the certificate that is served, or of the first authority to expire.
    pub not_after: String,
}

/// How a source stands; counts are since the start of the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: String,
    /// What the provider is told, where `public_url` is configured.
    pub url: Option<String>,
    /// The preset, `custom` or `none`.
    pub provider: String,
    /// Whether requests are verified and refused (`enforce`), only judged (`observe`), or not even that (`none`).
    pub enforcement: String,
    /// Deliveries stored.
    pub stored: u64,
    /// Duplicates answered.
    pub duplicate: u64,
    /// Requests refused.
    pub rejected: u64,
    /// Deliveries stored since the start that no route took.
    pub unrouted: u64,
    /// Whether the provider makes sure of its endpoint by a handshake.
    pub has_handshake: bool,
    /// RFC 3339; when one was last answered.
    pub handshake_at: Option<String>,
    /// In the order of the configuration.
    pub secrets: Vec<SecretStatus>,
}

/// How a secret stands; its use is counted since the start of the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecretStatus {
    /// Its name.
    pub name: String,
    /// RFC 3339; the first moment at which it is valid, when there is one.
    pub not_before: Option<String>,
    /// RFC 3339; the last moment at which it is valid, when there is one.
    pub not_after: Option<String>,
    /// RFC 3339; when it last verified a request.
    pub last_used_at: Option<String>,
    /// Requests that it has verified.
    pub uses: u64,
    /// What to do about it, if anything: such as that it is safe to retire.
    pub advice: Option<String>,
    /// Whether requests will be refused unless somebody follows the advice.
    pub warning: bool,
}

/// How a destination stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DestinationStatus {
    /// Its name.
    pub name: String,
    /// Where it is, without a query; empty when it is not in the configuration.
    pub url: String,
    /// The lane's state; `waiting (no destination)` when it is not in the configuration.
    pub state: String,
    /// Attempts that it may run at once, as found when that is adaptive.
    pub concurrency: usize,
    /// Attempts under way.
    pub running: usize,
    /// Forwards waiting or in flight.
    pub pending: u64,
    /// Age of the oldest pending forward in seconds; 0 when none is.
    pub oldest_age_seconds: u64,
    /// Dead letters.
    pub dead: u64,
}
