//! HTTP as the commands need it: one request, one answer.

use std::time::Duration;

use bytes::Bytes;
use countersign::causes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::Failure;

/// For connecting, sending and reading the whole answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Answers are documents for people; none of ours comes near.
const ANSWER_MAX: usize = 16 << 20;

#[derive(Clone)]
pub(super) struct Client(Pool<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Client {
    pub(super) fn new() -> Result<Self, Failure> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_platform_verifier(provider)
            .map_err(|error| Failure::Io(format!("TLS cannot be set up: {error}")))?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self(Pool::builder(TokioExecutor::new()).build(connector)))
    }

    pub(super) async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Failure> {
        let url = request.uri().clone();
        let exchange = async {
            let answer = self.0.request(request.map(Full::new)).await;
            let (head, body) = answer.map_err(|error| unreachable(&url, &error))?.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await;
            Ok(Response::from_parts(head, body.map_err(|error| unreachable(&url, &*error))?.to_bytes()))
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(Failure::Unreachable(format!("{url} did not answer within {} s", TIMEOUT.as_secs())))
            }
        }
    }
}

impl Client {
    /// Reads an answer line by line for as long as it lasts. The answer when it is not a 200.
    pub(super) async fn lines(
        &self,
        request: Request<Bytes>,
        told: &mut dyn FnMut(&str),
    ) -> Result<Option<Response<Bytes>>, Failure> {
        let url = request.uri().clone();
        let answer =
            self.0.request(request.map(Full::new)).await.map_err(|error| unreachable(&url, &error))?;
        let (head, mut body) = answer.into_parts();
        if head.status != StatusCode::OK {
            let body = Limited::new(body, ANSWER_MAX).collect().await;
            let body = body.map_err(|error| unreachable(&url, &*error))?.to_bytes();
            return Ok(Some(Response::from_parts(head, body)));
        }
        let mut unread = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| unreachable(&url, &error))?;
            unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if unread.len() > ANSWER_MAX {
                return Err(Failure::Failed(format!("{url} sends a line without an end")));
            }
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = unread.drain(..=end).collect();
                told(String::from_utf8_lossy(&line).trim_end());
            }
        }
        Ok(None)
    }
}

fn unreachable(url: &http::Uri, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::Unreachable(format!("{url} cannot be reached: {}", causes::chain(error)))
}
