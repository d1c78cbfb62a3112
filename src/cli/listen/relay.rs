//! Stands between the gateway and the application that is being developed, passes everything on as it is, and says what
//! came of it: a line for each attempt.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use bytes::Bytes;
use countersign::clock::Clock;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::cli::http::Client;
use crate::cli::say;

pub(super) struct Relay {
    client: Client,
    to: Uri,
}

impl Relay {
    /// Starts it on a free port.
    pub(super) async fn start(client: Client, to: Uri) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let relay = Arc::new(Self { client, to });
        let router =
            Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                let relay = Arc::clone(&relay);
                async move { relay.pass_on(method, &uri, headers, body).await }
            });
        // Larger bodies than any source takes are refused before they come here.
        let router = router.layer(axum::extract::DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(address)
    }

    async fn pass_on(
        &self,
        method: Method,
        uri: &Uri,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Response<Full<Bytes>> {
        let text =
            |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
        let (event, id, attempt) =
            (text("countersign-event"), text("countersign-delivery-id"), text("countersign-attempt"));
        let asked = Instant::now();
        for own in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            headers.remove(own);
        }
        let mut parts = self.to.clone().into_parts();
        parts.path_and_query = uri.path_and_query().cloned();
        let request = Uri::from_parts(parts).map_err(|error| error.to_string()).and_then(|url| {
            let request = Request::builder().method(method).uri(url).body(body);
            request.map_err(|error| error.to_string())
        });
        let answer = match request {
            Ok(mut request) => {
                *request.headers_mut() = headers;
                self.client.exchange(request).await.map_err(|failure| failure.into_parts().1)
            }
            Err(error) => Err(error),
        };
        let came = match &answer {
            Ok(answer) => answer.status().to_string(),
            Err(error) => format!("{error}; tried again soon"),
        };
        let again = if attempt == "1" { String::new() } else { format!(" (attempt {attempt})") };
        let took = asked.elapsed().as_millis();
        say(&format!("{}  {event:<28} {id:<38} {came} in {took} ms{again}", time()));
        match answer {
            Ok(answer) => {
                let (mut head, body) = answer.into_parts();
                head.headers.remove(CONNECTION);
                head.headers.remove(TRANSFER_ENCODING);
                head.headers.remove(CONTENT_LENGTH);
                Response::from_parts(head, Full::new(body))
            }
            Err(_) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response
            }
        }
    }
}

/// Hours, minutes and seconds, UTC.
pub(super) fn time() -> String {
    let now = Clock::system().now().to_string();
    now.get(11..19).unwrap_or_default().to_owned()
}
