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
use crate::rate::{Limiter, Sampler};
use crate::units::Rate;
use crate::verify::{Published, Verifier};

/// Within the time that senders wait for an answer, with some left for the store.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Sets of keys and certificates have a few KiB.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;
/// Asked for anew after so long; a key that a provider withdraws is believed no longer than that while it can be asked.
const FRESH_FOR: Duration = Duration::from_secs(3600);
/// Believed for so long while it cannot be: neither an outage of the provider nor a crowd that invents URLs and uses up
/// the rate keeps out deliveries under keys that are known.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
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
    kept: moka::future::Cache<(Arc<str>, String), Kept>,
    limiter: Mutex<Limiter>,
    /// Strangers can have keys asked for, and must not fill the log.
    failures: Mutex<Sampler>,
    origin: Instant,
}

#[derive(Clone)]
struct Kept {
    keys: Arc<Published>,
    fetched_at: Instant,
}

impl KeyCache {
    pub(super) fn new(fetch: Arc<dyn Fetch>) -> Self {
        let kept = moka::future::Cache::builder().max_capacity(KEPT_MAX).time_to_live(KEPT_FOR).build();
        let limiter = Mutex::new(Limiter::new(FETCHES, FETCHES_AT_ONCE));
        Self { fetch, kept, limiter, failures: Mutex::default(), origin: Instant::now() }
    }

    /// The keys at `url`, as the scheme of `verifier` reads them. Of several that ask at once for what is not known one
    /// fetches.
    pub(super) async fn get(
        &self,
        source: &Arc<str>,
        verifier: &Verifier,
        url: String,
    ) -> Result<Arc<Published>, Arc<FetchError>> {
        let place = (Arc::clone(source), url);
        let known = self.kept.get(&place).await;
        if known.as_ref().is_some_and(|kept| kept.fetched_at.elapsed() >= KEPT_FOR) {
            self.kept.invalidate(&place).await;
        } else if let Some(kept) = known {
            if kept.fetched_at.elapsed() < FRESH_FOR {
                return Ok(kept.keys);
            }
            return match self.fetch_once(verifier, &place.1).await {
                Ok(fresh) => {
                    self.kept.insert(place, fresh.clone()).await;
                    Ok(fresh.keys)
                }
                Err(error) => {
                    self.tell(source, &error);
                    Ok(kept.keys)
                }
            };
        }
        let fetch = self.fetch_once(verifier, &place.1);
        let fetched = self.kept.try_get_with(place.clone(), fetch).await;
        fetched.map(|kept| kept.keys).inspect_err(|error| self.tell(source, error))
    }

    fn tell(&self, source: &str, error: &FetchError) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unlogged) = failures.note(self.origin.elapsed()) {
            tracing::warn!(source, %error, unlogged, "the sender's keys cannot be had");
        }
    }

    async fn fetch_once(&self, verifier: &Verifier, url: &str) -> Result<Kept, FetchError> {
        let document = self.fetch(url).await?;
        let published = verifier.read_published(&document);
        let keys = Arc::new(published.map_err(|error| FetchError::Unusable(error.to_string()))?);
        Ok(Kept { keys, fetched_at: Instant::now() })
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use crate::verify::{Enforcement, Window, preset};

    /// Has a certificate, while it is not down.
    #[derive(Default)]
    struct Provider {
        is_down: AtomicBool,
        asked: AtomicUsize,
    }

    #[async_trait::async_trait]
    impl Fetch for Provider {
        async fn fetch(&self, _: &str) -> Result<Bytes, FetchError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if self.is_down.load(Ordering::SeqCst) {
                return Err(FetchError::Status(StatusCode::BAD_GATEWAY));
            }
            let certificate = include_str!("../../tests/fixtures/sns.pem");
            Ok(Bytes::from_static(certificate.as_bytes()))
        }
    }

    fn setting() -> (Verifier, Arc<Provider>, KeyCache) {
        let scheme = preset("aws-sns").unwrap().scheme.clone();
        let verifier = Verifier::new(
            "aws-sns".into(),
            scheme,
            Vec::new(),
            Window::default(),
            Enforcement::Enforce,
            None,
        );
        let provider = Arc::new(Provider::default());
        let cache = KeyCache::new(provider.clone());
        (verifier.unwrap(), provider, cache)
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_renewed_hourly_and_outlive_an_outage_of_their_provider_for_a_day() {
        let (verifier, provider, cache) = setting();
        let get = async || cache.get(&"in".into(), &verifier, "https://a.example".to_owned()).await.is_ok();
        let asked = || provider.asked.load(Ordering::SeqCst);
        assert!(get().await && get().await);
        assert_eq!(asked(), 1);
        tokio::time::advance(FRESH_FOR).await;
        assert!(get().await && get().await);
        assert_eq!(asked(), 2);

        provider.is_down.store(true, Ordering::SeqCst);
        tokio::time::advance(KEPT_FOR - Duration::from_secs(1)).await;
        assert!(get().await);
        assert_eq!(asked(), 3);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!get().await, "they are a day old");
        provider.is_down.store(false, Ordering::SeqCst);
        assert!(get().await);
    }

    #[tokio::test(start_paused = true)]
    async fn invented_urls_use_up_nothing_that_known_keys_need() {
        let (verifier, provider, cache) = setting();
        let source: Arc<str> = "in".into();
        assert!(cache.get(&source, &verifier, "known".to_owned()).await.is_ok());
        tokio::time::advance(FRESH_FOR).await;
        provider.is_down.store(true, Ordering::SeqCst);
        for number in 0..2 * FETCHES_AT_ONCE {
            assert!(cache.get(&source, &verifier, number.to_string()).await.is_err());
        }
        assert!(cache.get(&source, &verifier, "known".to_owned()).await.is_ok());
        assert_eq!(provider.asked.load(Ordering::SeqCst), 1 + FETCHES_AT_ONCE as usize);
    }
}
