//! The prices of a provider that runs, looked at and changed.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};

use super::protocol::Refusal;
use crate::{
    payments::pricing::{PriceChange, Prices, Pricing},
    settings,
};

pub fn routes(pricing: Pricing) -> Router {
    Router::new().route("/pricing", get(show).post(set)).with_state(pricing)
}

async fn show(State(pricing): State<Pricing>) -> Json<Prices> {
    Json(pricing.now())
}

/// Holds until the provider ends; the setting in the file is the business of whoever asks.
async fn set(State(pricing): State<Pricing>, Json(change): Json<PriceChange>) -> Response {
    let wrong = change.prices().find_map(|price| settings::amount(&price.to_string()).err());
    match wrong {
        Some(allowed) => {
            let detail = format!("a price has to be {allowed}");
            (StatusCode::UNPROCESSABLE_ENTITY, Json(Refusal { detail })).into_response()
        }
        None => Json(pricing.set_usd(&change)).into_response(),
    }
}
