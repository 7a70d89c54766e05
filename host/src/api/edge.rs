//! What happens to every request, whatever it asks for: it gets an id, its client is found and counted, its answer is
//! logged, a panic becomes an answer, and errors get their form.
//!
//! All of it is one middleware, because each layer costs a request time.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use ipnet::IpNet;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tracing::Instrument;

use super::{
    client,
    error::{self, ApiError},
    health,
    limits::RateLimiter,
    request_id::{self, RequestId},
};
use crate::settings::{ApiSettings, CorsOrigins};

/// What [`pass`] has to know.
pub struct Edge {
    limiter: RateLimiter,
    trusted_proxies: Vec<IpNet>,
}

impl Edge {
    pub fn new(settings: &ApiSettings) -> Self {
        Self {
            limiter: RateLimiter::per_minute(settings.rate_limit_per_minute),
            trusted_proxies: settings.trusted_proxies.clone(),
        }
    }
}

/// The middleware.
pub async fn pass(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = RequestId::of(request.headers());
    let client = client::address(&request, &edge.trusted_proxies);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", request_id = id.as_str(), %method, path, %client);
    let answered = async {
        let refused = match health::is_health(&path) {
            true => None,
            false => edge.limiter.check(client).err(),
        };
        let response = match refused {
            Some(seconds) => ApiError::rate_limited(seconds).into_response(),
            None => {
                AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|panic| {
                    tracing::error!(
                        panic = message(panic.as_ref()),
                        "a request's handler panicked"
                    );
                    ApiError::internal().into_response()
                })
            }
        };
        let response = error::render(response, &id);
        log(&method, &response, started);
        response
    };
    let mut response = answered.instrument(span).await;
    response.headers_mut().insert(&request_id::HEADER, id.header());
    response
}

/// Changes are worth a line; what is asked every two seconds is one for those who look closer.
fn log(method: &Method, response: &Response, started: Instant) {
    let (status, duration) = (response.status().as_u16(), started.elapsed());
    if method.is_safe() || response.status().is_client_error() {
        tracing::debug!(status, ?duration, "answered");
    } else {
        tracing::info!(status, ?duration, "answered");
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

/// Lets browsers call the API from pages of other origins, never with credentials.
pub fn cors(origins: &CorsOrigins) -> CorsLayer {
    let origins = match origins {
        CorsOrigins::Any => AllowOrigin::any(),
        // Settings hold nothing but URLs' origins, which are all headers' values.
        CorsOrigins::Only(origins) => AllowOrigin::list(
            origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()),
        ),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::any())
        .expose_headers([
            request_id::HEADER.clone(),
            header::RETRY_AFTER,
            header::LOCATION,
            HeaderName::from_static("allow"),
        ])
        .max_age(std::time::Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, http::StatusCode, routing::get};
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;
    use crate::api::client::Peer;

    fn settings(rate_limit_per_minute: u32) -> ApiSettings {
        ApiSettings {
            bind: "127.0.0.1:7466".parse().unwrap(),
            rate_limit_per_minute,
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            cors_origins: CorsOrigins::Any,
        }
    }

    fn router(settings: &ApiSettings) -> Router {
        let panics = || async {
            if true {
                panic!("on purpose");
            }
        };
        Router::new()
            .route("/", get(async || "hello"))
            .route("/panics", get(panics))
            .merge(health::routes())
            .layer((
                cors(&settings.cors_origins),
                axum::middleware::from_fn_with_state(Arc::new(Edge::new(settings)), pass),
            ))
    }

    async fn ask(router: &Router, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .extension(Peer("10.0.0.1:5".parse().unwrap()));
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn json(response: Response) -> Value {
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn every_answer_carries_the_requests_id_and_every_error_names_it() {
        let router = router(&settings(100));
        let response = ask(&router, "GET", "/", &[("x-request-id", "mine-1")]).await;
        assert_eq!(response.headers()["x-request-id"], "mine-1");
        assert!(!ask(&router, "GET", "/", &[]).await.headers()["x-request-id"].is_empty());

        let response = ask(&router, "GET", "/nowhere", &[("x-request-id", "mine-2")]).await;
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
        let response = ask(&router(&settings(100)), "PUT", "/", &[]).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()[header::ALLOW], "GET,HEAD");
        assert_eq!(json(response).await["code"], "method_not_allowed");
    }

    #[tokio::test]
    async fn a_panic_in_a_handler_is_an_answer() {
        let response = ask(&router(&settings(100)), "GET", "/panics", &[]).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = json(response).await;
        assert_eq!(body["code"], "internal_error");
        assert!(!body.to_string().contains("on purpose"));
    }

    #[tokio::test]
    async fn clients_are_limited_each_for_itself_and_health_is_not() {
        let router = router(&settings(3));
        for _ in 0..3 {
            assert_eq!(
                ask(&router, "GET", "/", &[("x-forwarded-for", "203.0.113.9")]).await.status(),
                StatusCode::OK
            );
        }
        let response = ask(
            &router,
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
            ask(&router, "GET", "/", &[("x-forwarded-for", "203.0.113.10")]).await.status(),
            StatusCode::OK
        );
        assert_eq!(
            ask(&router, "GET", "/health", &[("x-forwarded-for", "203.0.113.9")]).await.status(),
            StatusCode::OK
        );
    }

    #[tokio::test]
    async fn pages_of_other_origins_may_call_but_never_with_credentials() {
        let preflight =
            [("origin", "https://a.example"), ("access-control-request-method", "DELETE")];
        let response = ask(&router(&settings(100)), "OPTIONS", "/", &preflight).await;
        assert_eq!(response.status(), StatusCode::OK);
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header(header::ACCESS_CONTROL_ALLOW_ORIGIN), Some("*"));
        assert!(header(header::ACCESS_CONTROL_ALLOW_METHODS).unwrap().contains("DELETE"));
        assert_eq!(header(header::ACCESS_CONTROL_ALLOW_CREDENTIALS), None);

        let only = ApiSettings {
            cors_origins: CorsOrigins::Only(vec!["https://b.example".into()]),
            ..settings(100)
        };
        let response = ask(&router(&only), "GET", "/", &[("origin", "https://a.example")]).await;
        assert!(!response.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
        let response = ask(&router(&only), "GET", "/", &[("origin", "https://b.example")]).await;
        assert_eq!(response.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://b.example");
    }
}
