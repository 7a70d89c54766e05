//! Browsers: a page of another origin may call the API, where the operator allows it, and never with credentials.
//!
//! A browser names the page's origin in each such call; all other requests pass by untouched, and without the price of the
//! headers that only browsers read.

use std::{convert::Infallible, future::Future, time::Duration};

use axum::{
    extract::Request,
    http::{HeaderValue, Method, header},
    response::Response,
};
use tower::{Layer, Service, service_fn};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::request_id;
use crate::settings::CorsOrigins;

/// How long a browser may remember that it was allowed.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Which pages may call.
pub struct Pages {
    cors: CorsLayer,
    /// Whether the answer to one origin may differ from that to another, which caches have to know.
    differ: bool,
}

impl Pages {
    pub fn new(origins: &CorsOrigins) -> Self {
        let (allowed, differ) = match origins {
            CorsOrigins::Any => (AllowOrigin::any(), false),
            // Settings hold nothing but URLs' origins, which are all headers' values.
            CorsOrigins::Only(origins) => {
                let values = origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok());
                (AllowOrigin::list(values), true)
            }
        };
        let cors = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            // Each by its name: `*` would not mean the one that signatures travel in.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([
                request_id::HEADER.clone(),
                header::RETRY_AFTER,
                header::LOCATION,
                header::ALLOW,
                header::WWW_AUTHENTICATE,
            ])
            .max_age(MAX_AGE);
        Self { cors, differ }
    }

    /// What `respond` answers, with what a page's browser has to know about it; a browser that only asks whether a page may
    /// call is answered here.
    pub async fn answer<F, A>(&self, request: Request, respond: F) -> Response
    where
        F: Fn(Request) -> A,
        A: Future<Output = Response>,
    {
        if request.headers().contains_key(header::ORIGIN) {
            let mut service = self.cors.layer(service_fn(|request| {
                let response = respond(request);
                async move { Ok::<_, Infallible>(response.await) }
            }));
            let Ok(response) = service.call(request).await;
            return response;
        }
        let mut response = respond(request).await;
        if self.differ {
            response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
        }
        response
    }
}
