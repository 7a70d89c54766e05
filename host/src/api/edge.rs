//! What happens to every request, whatever it asks for: it gets an id, its client is found and counted, its signature is checked
//! if it has one, its answer is logged, a panic becomes an answer, and errors get their form.
//!
//! All of it is one function around the router, because each layer of a router costs a request allocations of its own.

use std::{
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    pin::pin,
    time::Instant,
};

use axum::{
    Router,
    extract::Request,
    http::{Method, Uri},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use ipnet::IpNet;
use tower::Service;
use tracing::{Instrument, Span, level_filters::LevelFilter};

use super::{
    client::{self, ClientAddress},
    error::{self, ApiError},
    health,
    limits::{self, RateLimiter},
    pages::Pages,
    port_check,
    request_id::{self, RequestId},
    signed,
};
use crate::{owners::Gatekeeper, settings::ApiSettings};

/// The routes, with what happens to every request around them.
pub struct Edge {
    routes: Router,
    pages: Pages,
    limiter: RateLimiter,
    trusted_proxies: Vec<IpNet>,
    /// Absent where signatures mean nothing.
    gatekeeper: Option<Gatekeeper>,
}

impl Edge {
    pub fn new(settings: &ApiSettings, routes: Router) -> Self {
        Self {
            routes,
            pages: Pages::new(&settings.cors_origins),
            limiter: RateLimiter::per_minute(settings.rate_limit_per_minute),
            trusted_proxies: settings.trusted_proxies.clone(),
            gatekeeper: None,
        }
    }

    /// With somebody who lets signed requests in.
    #[must_use]
    pub fn with_gatekeeper(self, gatekeeper: Option<Gatekeeper>) -> Self {
        Self { gatekeeper, ..self }
    }

    /// Answers a request that came over a connection with `peer`.
    ///
    /// Making a span costs about as much as answering a read from memory, and such a read writes no line. So a read gets its
    /// span only once a line is about to be written (see [`Told::tell`]) or when it has to wait for something, because then
    /// others may write lines for it.
    pub async fn answer(&self, peer: SocketAddr, request: Request) -> Response {
        let told = Told {
            id: RequestId::of(request.headers()),
            method: request.method().clone(),
            uri: request.uri().clone(),
            client: client::address(peer.ip(), request.headers(), &self.trusted_proxies),
            started: Instant::now(),
        };
        let mut response = {
            let mut answered =
                pin!(self.pages.answer(request, |request| self.route(&told, request)));
            if told.method.is_safe() && LevelFilter::current() < LevelFilter::DEBUG {
                match answered.as_mut().now_or_never() {
                    Some(response) => response,
                    None => answered.instrument(told.span()).await,
                }
            } else {
                answered.instrument(told.span()).await
            }
        };
        response.headers_mut().insert(&request_id::HEADER, told.id.into_header());
        response
    }

    async fn route(&self, told: &Told, mut request: Request) -> Response {
        if port_check::is_port_check(told.uri.path()) {
            request.extensions_mut().insert(ClientAddress(told.client));
        }
        let routed = async {
            let is_health = health::is_health(told.uri.path());
            if !is_health {
                self.limiter.check(told.client).map_err(ApiError::rate_limited)?;
            }
            limits::check_head(&request)?;
            // After the limit, since checking a signature costs more than most answers do.
            if let Some(gatekeeper) = self.gatekeeper.as_ref().filter(|_| !is_health)
                && signed::is_signed(request.headers())
            {
                // On the heap, so that requests without a signature do not carry the room for it along.
                request = Box::pin(signed::admitted(gatekeeper, request)).await?;
            }
            self.routes.clone().call(request).await.map_err(|never| match never {})
        };
        let response = match AssertUnwindSafe(routed).catch_unwind().await {
            Ok(routed) => routed.unwrap_or_else(ApiError::into_response),
            Err(panic) => {
                let panic = message(panic.as_ref());
                told.tell(|| tracing::error!(panic, "a request's handler panicked"));
                ApiError::internal().into_response()
            }
        };
        let (response, failure) = error::render(response, &told.id);
        if let Some(failure) = failure {
            told.tell(|| {
                tracing::warn!(
                    status = response.status().as_u16(),
                    code = failure.code(),
                    detail = failure.detail(),
                    "a request failed"
                );
            });
        }
        told.answered(&response);
        response
    }
}

/// A request, as log lines tell of it.
struct Told {
    id: RequestId,
    method: Method,
    uri: Uri,
    client: IpAddr,
    started: Instant,
}

impl Told {
    /// Of the highest level, so that no filter that lets a line through takes the request's id off it.
    fn span(&self) -> Span {
        tracing::error_span!(
            "request",
            request_id = self.id.as_str(),
            method = %self.method,
            path = self.uri.path(),
            client = %self.client
        )
    }

    /// Writes lines in the request's span, which is made where there is none yet.
    fn tell(&self, write: impl FnOnce()) {
        if Span::current().is_none() {
            self.span().in_scope(write);
        } else {
            write();
        }
    }

    /// Changes are worth a line; what is asked every two seconds is one for those who look closer.
    fn answered(&self, response: &Response) {
        let status = response.status();
        if self.method.is_safe() || status.is_client_error() {
            tracing::debug!(status = status.as_u16(), duration = ?self.started.elapsed(), "answered");
        } else {
            tracing::info!(status = status.as_u16(), duration = ?self.started.elapsed(), "answered");
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{HeaderValue, StatusCode, header},
        routing::get,
    };
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;
    use crate::{settings::CorsOrigins, telemetry::testing::Lines};

    fn settings(rate_limit_per_minute: u32) -> ApiSettings {
        ApiSettings {
            bind: "127.0.0.1:7466".parse().unwrap(),
            rate_limit_per_minute,
            require_signed_requests: false,
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            cors_origins: CorsOrigins::Any,
        }
    }

    fn edge(settings: &ApiSettings) -> Edge {
        let panics = || async {
            if true {
                panic!("on purpose");
            }
        };
        let routes = Router::new()
            .route("/", get(async || "hello"))
            .route("/panics", get(panics))
            .merge(health::routes());
        Edge::new(settings, routes)
    }

    async fn ask(edge: &Edge, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let request = Request::builder().method(method).uri(path);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        edge.answer("10.0.0.1:5".parse().unwrap(), request.body(Body::empty()).unwrap()).await
    }

    async fn json(response: Response) -> Value {
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn every_answer_carries_the_requests_id_and_every_error_names_it() {
        let edge = edge(&settings(100));
        let response = ask(&edge, "GET", "/", &[("x-request-id", "mine-1")]).await;
        assert_eq!(response.headers()["x-request-id"], "mine-1");
        assert!(!ask(&edge, "GET", "/", &[]).await.headers()["x-request-id"].is_empty());

        let response = ask(&edge, "GET", "/nowhere", &[("x-request-id", "mine-2")]).await;
        assert_eq!(
            (response.status(), &response.headers()["x-request-id"]),
            (StatusCode::NOT_FOUND, &HeaderValue::from_static("mine-2"))
        );
        let body = json(response).await;
        assert_eq!(
            (body["code"].as_str(), body["request_id"].as_str()),
            (Some("not_found"), Some("mine-2"))
        );
        assert!(body["detail"].as_str().unwrap().contains("Not Found"));
    }

    #[tokio::test]
    async fn a_wrong_method_is_told_which_ones_there_are() {
        let response = ask(&edge(&settings(100)), "PUT", "/", &[]).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()[header::ALLOW], "GET,HEAD");
        assert_eq!(json(response).await["code"], "method_not_allowed");
    }

    #[tokio::test]
    async fn a_panic_in_a_handler_is_an_answer() {
        let response = ask(&edge(&settings(100)), "GET", "/panics", &[]).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = json(response).await;
        assert_eq!(body["code"], "internal_error");
        assert!(!body.to_string().contains("on purpose"));
    }

    #[tokio::test]
    async fn every_line_about_a_request_carries_its_id_whatever_the_filter_and_also_when_it_waited()
    {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_max_level(tracing::Level::WARN)
            .with_writer(lines.writer())
            .finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let waits = async || {
            tokio::task::yield_now().await;
            tracing::warn!("said after waiting");
        };
        let mut edge = edge(&settings(100));
        edge.routes = edge.routes.route("/waits", get(waits));
        for path in ["/panics", "/waits"] {
            // Other tests pass these places without a subscriber, and the first to come decides whether they are looked at.
            ask(&edge, "GET", path, &[]).await;
            tracing::callsite::rebuild_interest_cache();
            ask(&edge, "GET", path, &[("x-request-id", "mine-1")]).await;
        }
        let text = lines.text();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mine = lines.filter(|line| line["spans"][0]["request_id"] == "mine-1");
        let said: Vec<_> = mine.map(|line| line["fields"]["message"].clone()).collect();
        assert_eq!(
            said,
            ["a request's handler panicked", "a request failed", "said after waiting"],
            "{text}"
        );
    }

    #[tokio::test]
    async fn clients_are_limited_each_for_itself_and_health_is_not() {
        let edge = edge(&settings(3));
        for _ in 0..3 {
            assert_eq!(
                ask(&edge, "GET", "/", &[("x-forwarded-for", "203.0.113.9")]).await.status(),
                StatusCode::OK
            );
        }
        let response = ask(
            &edge,
            "GET",
            "/",
            &[("x-forwarded-for", "203.0.113.9"), ("origin", "https://a.example")],
        )
        .await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "20");
        // A page has to be able to read why.
        assert_eq!(response.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(json(response).await["code"], "rate_limited");
        assert_eq!(
            ask(&edge, "GET", "/", &[("x-forwarded-for", "203.0.113.10")]).await.status(),
            StatusCode::OK
        );
        assert_eq!(
            ask(&edge, "GET", "/health", &[("x-forwarded-for", "203.0.113.9")]).await.status(),
            StatusCode::OK
        );
    }

    #[tokio::test]
    async fn pages_of_other_origins_may_call_but_never_with_credentials() {
        let preflight =
            [("origin", "https://a.example"), ("access-control-request-method", "DELETE")];
        let response = ask(&edge(&settings(100)), "OPTIONS", "/", &preflight).await;
        assert_eq!(response.status(), StatusCode::OK);
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header(header::ACCESS_CONTROL_ALLOW_ORIGIN), Some("*"));
        assert!(header(header::ACCESS_CONTROL_ALLOW_METHODS).unwrap().contains("DELETE"));
        assert_eq!(header(header::ACCESS_CONTROL_ALLOW_CREDENTIALS), None);

        let only = ApiSettings {
            cors_origins: CorsOrigins::Only(vec!["https://b.example".into()]),
            ..settings(100)
        };
        let response = ask(&edge(&only), "GET", "/", &[("origin", "https://a.example")]).await;
        assert!(!response.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
        let response = ask(&edge(&only), "GET", "/", &[("origin", "https://b.example")]).await;
        assert_eq!(response.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://b.example");
    }
}
