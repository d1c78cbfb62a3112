//! What the gateway is measured beside, each a process of its own with the gateway's runtime: a bare HTTP server, the
//! same with a signature check, and the same with a log on disk. They do the least that could be called by that name.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sha2::Sha256;
use tokio::net::TcpListener;

use crate::log::Log;
use crate::requests::SECRET;

/// What a server does before it answers.
struct Service {
    /// The key, prepared once.
    key: Option<Hmac<Sha256>>,
    log: Option<Log>,
}

/// Serves until the process is ended. With `verify` it checks signatures, with `log` it keeps what it got there.
pub(crate) fn serve(verify: bool, log: Option<PathBuf>) {
    let key = verify.then(|| Hmac::new_from_slice(SECRET.as_bytes()).unwrap());
    let service = Arc::new(Service { key, log: log.map(|directory| Log::open(&directory)) });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("listen={}", listener.local_addr().unwrap());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let service = Arc::clone(&service);
            tokio::spawn(async move {
                let answer = service_fn(|request| service.answer(request));
                // A sender that goes away is no concern of a benchmark's.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        if request.method() == Method::GET {
            return Ok(Response::new(Full::new(self.counters().into())));
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if let Some(key) = &self.key {
            let signature = head.headers.get("x-hostwares-signature").unwrap().as_bytes();
            let mut expected = [0; 32];
            hex::decode_to_slice(&signature[b"sha256=".len()..], &mut expected).unwrap();
            let mut mac = key.clone();
            mac.update(&body);
            if mac.verify_slice(&expected).is_err() {
                let mut refused = Response::default();
                *refused.status_mut() = StatusCode::UNAUTHORIZED;
                return Ok(refused);
            }
        }
        if let Some(log) = &self.log {
            log.append(&head.headers, &body).await;
        }
        Ok(Response::default())
    }

    /// As the gateway tells them.
    fn counters(&self) -> String {
        let commits = self.log.as_ref().map_or(0, Log::commits);
        format!("countersign_store_commit_duration_seconds_count {commits}\n")
    }
}
