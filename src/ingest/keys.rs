//! Fetches the keys that senders publish: within a time, up to a size, never faster than a rate, and kept for an hour.
//! Which URLs may be asked is decided by `verify`; nothing here follows a redirect.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::Instant;

use crate::causes;
use crate::rate::Limiter;
use crate::units::Rate;
use crate::verify::{Published, Verifier};

/// Within the time that senders wait for an answer, with some left for the store.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Sets of keys and certificates have a few KiB.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;
/// Providers announce new keys a day or more before they sign with them, and say so in `Cache-Control` that is longer.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// A provider has a handful of keys; of regions there are some thirty.
const KEPT_MAX: u64 = 256;
/// Whoever invents URLs that look like a provider's must not have us ask for all of them.
const FETCHES: Rate = Rate { events: 1, per: Duration::from_secs(1) };
const FETCHES_AT_ONCE: u32 = 16;

/// Why there are no keys.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// They cannot be had.
    #[error("{0}")]
    Unreachable(String),
    /// The answer is not what it should be.
    #[error("the answer has the status {0}")]
    Status(StatusCode),
    /// There is something else at the URL.
    #[error("{0}")]
    Unusable(String),
    /// Too many have been asked for.
    #[error("keys are asked for too often")]
    TooMany,
}

/// Gets a document; a seam, so that tests need no provider.
#[async_trait::async_trait]
pub trait Fetch: Send + Sync {
    /// The document at `url`.
    async fn fetch(&self, url: &str) -> Result<Bytes, FetchError>;
}

/// Over HTTPS, with the platform's roots.
#[derive(Default)]
pub(super) struct Https(tokio::sync::OnceCell<Client<HttpsConnector<HttpConnector>, Empty<Bytes>>>);

#[async_trait::async_trait]
impl Fetch for Https {
    async fn fetch(&self, url: &str) -> Result<Bytes, FetchError> {
        let unreachable = |error: String| FetchError::Unreachable(error);
        let client = self.0.get_or_try_init(|| async {
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            let connector = HttpsConnectorBuilder::new()
                .with_provider_and_platform_verifier(provider)
                .map_err(|error| FetchError::Unreachable(error.to_string()))?
                .https_only()
                .enable_http1()
                .build();
            Ok(Client::builder(TokioExecutor::new()).build(connector))
        });
        let client = client.await?;
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| unreachable(error.to_string()))?;
        let request = Request::get(uri).body(Empty::new()).map_err(|error| unreachable(error.to_string()))?;
        let answer = client.request(request).await.map_err(|error| unreachable(causes::chain(&error)))?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), DOCUMENT_BYTES_MAX).collect().await;
        Ok(body.map_err(|error| FetchError::Unusable(error.to_string()))?.to_bytes())
    }
}

/// The keys that were fetched.
pub(super) struct KeyCache {
    fetch: Arc<dyn Fetch>,
    /// By source and URL: what a document is read as is the scheme's to say.
    kept: moka::future::Cache<(Arc<str>, String), Arc<Published>>,
    limiter: Mutex<Limiter>,
    origin: Instant,
}

impl KeyCache {
    pub(super) fn new(fetch: Arc<dyn Fetch>) -> Self {
        let kept = moka::future::Cache::builder().max_capacity(KEPT_MAX).time_to_live(KEPT_FOR).build();
        let limiter = Mutex::new(Limiter::new(FETCHES, FETCHES_AT_ONCE));
        Self { fetch, kept, limiter, origin: Instant::now() }
    }

    /// The keys at `url`, as the scheme of `verifier` reads them. Of several that ask at once one fetches.
    pub(super) async fn get(
        &self,
        source: &Arc<str>,
        verifier: &Verifier,
        url: String,
    ) -> Result<Arc<Published>, Arc<FetchError>> {
        let fetch = async {
            let document = self.fetch(&url).await?;
            let published = verifier.read_published(&document);
            published.map(Arc::new).map_err(|error| FetchError::Unusable(error.to_string()))
        };
        self.kept.try_get_with((Arc::clone(source), url.clone()), fetch).await
    }

    /// Asks for a URL that confirms something, whatever is there.
    pub(super) async fn ask(&self, url: &str) -> Result<(), FetchError> {
        self.fetch(url).await.map(drop)
    }

    async fn fetch(&self, url: &str) -> Result<Bytes, FetchError> {
        if !self.may_fetch() {
            return Err(FetchError::TooMany);
        }
        let document = tokio::time::timeout(TIMEOUT, self.fetch.fetch(url)).await;
        document.map_err(|_| FetchError::Unreachable("no answer in time".to_owned()))?
    }

    fn may_fetch(&self) -> bool {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.claim(self.origin.elapsed(), Duration::ZERO).is_ok()
    }
}
