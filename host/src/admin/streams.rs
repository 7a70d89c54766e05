//! What a provider that runs has earned, collecting it, and the rules for payments.

use alloy::primitives::Address;
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};

use super::protocol::{Refusal, WithdrawRequest};
use crate::payments::streams::{
    Collector, LiveRules, PaymentRules, RulesChange, StreamKey,
    ledger::{Ledger, Withdrawal},
};

pub fn routes(collector: Collector, rules: LiveRules) -> Router {
    Router::new()
        .route("/streams", get(ledger))
        .route("/withdrawals", post(withdraw))
        .with_state(collector)
        .merge(
            Router::new()
                .route("/payment-rules", get(show_rules).post(change_rules))
                .with_state(rules),
        )
}

async fn ledger(State(collector): State<Collector>) -> Result<Json<Ledger>, Response> {
    collector
        .ledger()
        .await
        .map(Json)
        .map_err(|error| refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

async fn withdraw(
    State(collector): State<Collector>,
    Json(request): Json<WithdrawRequest>,
) -> Result<Json<Withdrawal>, Response> {
    let contract: Address = request.contract.parse().map_err(|_| {
        let detail = format!("{} is no address of a contract", request.contract);
        refused(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })?;
    let key = StreamKey { contract, reference: request.stream_id };
    collector
        .withdraw(key)
        .await
        .map(Json)
        .map_err(|error| refused(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))
}

async fn show_rules(State(rules): State<LiveRules>) -> Json<PaymentRules> {
    Json(rules.now())
}

/// Holds until the provider ends; the settings in the file are the business of whoever asks.
async fn change_rules(
    State(rules): State<LiveRules>,
    Json(change): Json<RulesChange>,
) -> Result<Json<PaymentRules>, Response> {
    let changed = rules.change(&change);
    changed
        .inspect(|now| tracing::info!("the rules for payments are changed: {now:?}"))
        .map(Json)
        .map_err(|error| refused(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))
}

fn refused(status: StatusCode, detail: String) -> Response {
    (status, Json(Refusal { detail })).into_response()
}
