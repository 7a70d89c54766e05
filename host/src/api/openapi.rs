//! `GET /openapi.json`: what this API takes and answers, made from what stands beside each handler.

use axum::{Router, body::Bytes, http::header, response::IntoResponse, routing::get};
use utoipa::OpenApi;

use super::{health, jobs, payments, provider, summary, versioned, vms};

const PATH: &str = "/openapi.json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Golem VM provider",
        description = "Rents out virtual machines. Every answer carries `x-request-id`; errors hold `detail`, `code` and `request_id`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        vms::create,
        vms::list,
        vms::one,
        vms::access,
        vms::stop,
        vms::start,
        vms::add_key,
        vms::delete,
        jobs::job,
        payments::stream,
        payments::streams,
        provider::info,
        summary::summary,
        health::health,
    )
)]
struct Document;

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The route with its one answer.
pub fn answer() -> Router {
    // Made of texts at compile time; a test reads it back.
    let body = Bytes::from(serde_json::to_vec(&document()).unwrap_or_default());
    let answer =
        get(async move || ([(header::CONTENT_TYPE, "application/json")], body).into_response());
    Router::new().route(PATH, answer.clone()).route(&versioned(PATH), answer)
}
