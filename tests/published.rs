//! Keys that senders publish, through a real gateway: a server on loopback stands for the provider, behind the seam that
//! fetches.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use countersign::clock::Clock;
use countersign::config;
use countersign::dispatch::Lanes;
use countersign::ingest::{Fetch, FetchError, Ingest, Listener};
use countersign::metrics::Metrics;
use countersign::store::quarantine::Quarantine;
use countersign::store::{Store, sqlite};
use http::StatusCode;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// A provider's server: answers each request with the document of the moment, or hangs up when there is none.
struct Provider {
    address: SocketAddr,
    asked: AtomicUsize,
    document: Mutex<Option<String>>,
}

impl Provider {
    fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let provider = Arc::new(Self { address, asked: AtomicUsize::new(0), document: Mutex::new(None) });
        let this = Arc::clone(&provider);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = [0; 4];
                stream.read_exact(&mut line).unwrap();
                this.asked.fetch_add(1, Ordering::SeqCst);
                if let Some(document) = &*this.document.lock().unwrap() {
                    stream.write_all(document.as_bytes()).unwrap();
                }
            }
        });
        provider
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn publishes(&self, document: &str) {
        *self.document.lock().unwrap() = Some(document.to_owned());
    }
}

#[async_trait::async_trait]
impl Fetch for Provider {
    async fn fetch(&self, _: &str) -> Result<Bytes, FetchError> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let failed = |error: std::io::Error| FetchError::Unreachable(error.to_string());
        let mut stream = tokio::net::TcpStream::connect(self.address).await.map_err(failed)?;
        stream.write_all(b"GET\n").await.map_err(failed)?;
        let mut document = Vec::new();
        stream.read_to_end(&mut document).await.map_err(failed)?;
        if document.is_empty() { Err(FetchError::Status(StatusCode::NOT_FOUND)) } else { Ok(document.into()) }
    }
}

/// A gateway with one source of this provider, which has no secrets, until `stop`.
struct Gateway {
    address: SocketAddr,
    stop: CancellationToken,
    runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Gateway {
    fn start(provider: &str, fetch: Arc<dyn Fetch>) -> Self {
        Self::start_with(provider, "", fetch)
    }

    /// The same with more lines in its source.
    fn start_with(provider: &str, more: &str, fetch: Arc<dyn Fetch>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let text = format!(
            "listen.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\"\nstore.disk_reserve = \"1MiB\"\n\
             [[source]]\nname = \"in\"\nprovider = \"{provider}\"\nto = [\"backend\"]\n{more}\n\
             [[destination]]\nname = \"backend\"\nurl = \"http://127.0.0.1:9/\"\n"
        );
        let config = config::parse(&text, "test.toml", directory.path(), &|_| None, clock.now()).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let address = runtime.block_on(async {
            let metrics = Metrics::new();
            let listener = Listener::new(None, &config.listen, &config.limits).unwrap();
            let address = listener.address().unwrap();
            let lanes = Lanes::new(clock.clone(), metrics.clone());
            lanes.apply(&config.destinations);
            assert!(lanes.pause("backend"));
            let options = sqlite::Options {
                directory: config.store.path.clone(),
                disk_reserve: config.store.disk_reserve,
                metrics: metrics.clone(),
            };
            let store: Arc<dyn Store> = Arc::new(sqlite::open(options, lanes.clone()).unwrap());
            lanes.start(&store);
            let ingest = Ingest::with_fetch(
                &config,
                store,
                lanes,
                Arc::new(Quarantine::none(&metrics)),
                clock,
                metrics,
                fetch,
            );
            let (_, serving) = listener.serve(ingest, stop.clone());
            tokio::spawn(serving);
            address
        });
        Self { address, stop, runtime, _directory: directory }
    }

    /// The whole answer to a request with this body.
    fn answer(&self, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = "POST /webhooks/in HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n";
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn check(&self, body: &str, status: u16) {
        let answer = self.answer(body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status} was expected, {answer}");
        assert_eq!(answer.contains("retry-after"), status == 503, "{answer}");
    }

    fn stop(self) {
        self.stop.cancel();
        self.runtime.shutdown_timeout(std::time::Duration::from_secs(10));
    }
}

/// A genuine message of Amazon SNS, and the certificate of its signer.
fn sns() -> (String, String) {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let of = |vector: &&Value| vector["preset"] == "aws-sns" && vector["expected"] == "verified";
    let vector = vectors.iter().find(of).unwrap();
    let text = |key: &str| vector[key].as_str().unwrap().to_owned();
    (text("body"), text("secret"))
}

#[test]
fn a_certificate_is_fetched_once_and_only_from_documented_places() {
    let (provider, (body, certificate)) = (Provider::start(), sns());
    let gateway = Gateway::start("aws-sns", provider.clone());
    let elsewhere = body.replace("sns.eu-west-1.amazonaws.com/Simple", "sns.evil.example/Simple");
    assert_ne!(elsewhere, body);
    gateway.check(&elsewhere, 401);
    gateway.check("{}", 401);
    assert_eq!(provider.asked(), 0);

    // What cannot be had is no fault of the sender's, and is asked for again.
    gateway.check(&body, 503);
    provider.publishes("no certificate");
    gateway.check(&body, 503);
    assert_eq!(provider.asked(), 2);

    provider.publishes(&certificate);
    gateway.check(&body, 200);
    gateway.check(&body, 200);
    gateway.check(&body.replace("Hello", "Hullo"), 401);
    assert_eq!(provider.asked(), 3);
    gateway.stop();
}

#[test]
fn invented_urls_are_not_all_asked_for() {
    let (provider, (body, _)) = (Provider::start(), sns());
    let gateway = Gateway::start("aws-sns", provider.clone());
    for number in 0..60 {
        let invented = format!("SimpleNotificationService-{number}.pem");
        let (begin, rest) = body.split_once("SimpleNotificationService-").unwrap();
        let (_, end) = rest.split_once(".pem").unwrap();
        gateway.check(&[begin, &invented, end].concat(), 503);
    }
    assert!((16..50).contains(&provider.asked()), "{}", provider.asked());
    gateway.stop();
}

#[test]
fn a_provider_that_hangs_delays_nobody_beyond_the_deadline() {
    struct Hanging;
    #[async_trait::async_trait]
    impl Fetch for Hanging {
        async fn fetch(&self, _: &str) -> Result<Bytes, FetchError> {
            std::future::pending().await
        }
    }
    let gateway = Gateway::start("aws-sns", Arc::new(Hanging));
    let begin = tokio::time::Instant::now();
    gateway.check(&sns().0, 503);
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
    gateway.stop();
}

#[test]
fn a_subscription_is_confirmed_at_the_senders_own_host_and_only_when_it_is_signed() {
    let provider = Provider::start();
    let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    let public = STANDARD.encode(public.as_ref());
    let pem = format!("-----BEGIN PUBLIC KEY-----\\n{public}\\n-----END PUBLIC KEY-----\\n");
    let secrets = format!("secrets = [{{ value = \"{pem}\" }}]");
    let gateway = Gateway::start_with("aws-sns", &secrets, provider.clone());
    let confirmation = |host: &str| {
        let url = format!("https://{host}/?Action=ConfirmSubscription&TopicArn=arn:t&Token=23");
        let fields = [
            ("Message", "m"),
            ("MessageId", "id-1"),
            ("SubscribeURL", &url),
            ("Timestamp", "2026-11-29T12:00:00.000Z"),
            ("Token", "23"),
            ("TopicArn", "arn:t"),
            ("Type", "SubscriptionConfirmation"),
        ];
        let text: String = fields.iter().map(|(name, value)| format!("{name}\n{value}\n")).collect();
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).unwrap();
        let mut body: serde_json::Map<String, Value> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect();
        body.insert("SignatureVersion".to_owned(), "2".into());
        body.insert("Signature".to_owned(), STANDARD.encode(signature).into());
        Value::Object(body).to_string()
    };
    gateway.check(&confirmation("sns.evil.example"), 400);
    let good = confirmation("sns.eu-west-1.amazonaws.com");
    gateway.check(&good.replace("id-1", "id-2"), 401);
    assert_eq!(provider.asked(), 0);
    // It is asked for again when the sender tries again.
    gateway.check(&good, 503);
    provider.publishes("<ConfirmSubscriptionResponse/>");
    gateway.check(&good, 200);
    assert_eq!(provider.asked(), 2);
    gateway.stop();
}
