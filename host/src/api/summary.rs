//! `GET /summary`: all that a dashboard shows, in one answer.

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use rust_decimal::{Decimal, prelude::ToPrimitive};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    ApiState,
    signed::Caller,
    versioned,
    vms::{AnyState, VmBody, visible},
};
use crate::{
    discovery::{AdvertiserReport, Advertising},
    payments::pricing::{MonthlyPrices, Prices},
    ports::verification::Reachability,
    resources::{Amounts, ResourceReport},
    settings::Environment,
};

/// All that a dashboard shows.
#[derive(Serialize, ToSchema)]
pub struct Summary<'a> {
    #[schema(example = "running")]
    status: &'static str,
    #[schema(example = "0.1.0")]
    version: &'static str,
    #[schema(value_type = String, example = "production")]
    environment: Environment,
    resources: ResourcesBody,
    /// Where the provider is reached, and which of its ports others could reach.
    #[schema(value_type = Object)]
    reachability: Reachability,
    /// Where the provider is listed, and whether requestors see it there.
    #[schema(value_type = Vec<Object>)]
    advertisers: Vec<AdvertiserReport>,
    pricing: Pricing,
    /// What machines can be made by.
    backends: Vec<String>,
    /// Those that the caller may see.
    vms: Vec<VmBody<'a>>,
    /// How many there are in all.
    vms_total: usize,
}

/// The computer and what of it is rented out.
#[derive(Serialize, ToSchema)]
pub struct ResourcesBody {
    /// What the computer has.
    total: AmountsBody,
    /// What of that may be rented out.
    allocatable: AmountsBody,
    /// What VMs hold.
    allocated: AmountsBody,
    /// What a further VM could get.
    available: AmountsBody,
}

/// Cores, and GB of memory and storage.
#[derive(Serialize, ToSchema)]
pub struct AmountsBody {
    cpu: u64,
    memory: u64,
    storage: u64,
}

/// Prices a month. Those in GLM, exact decimals, are `null` as long as no price of GLM is known.
#[derive(Serialize, ToSchema)]
pub struct Pricing {
    usd_per_core_month: f64,
    usd_per_gb_ram_month: f64,
    usd_per_gb_storage_month: f64,
    #[schema(example = "20.0")]
    glm_per_core_month: Option<String>,
    #[schema(example = "8.0")]
    glm_per_gb_ram_month: Option<String>,
    #[schema(example = "0.4")]
    glm_per_gb_storage_month: Option<String>,
    /// The price of GLM that those are computed with.
    #[schema(example = "0.25")]
    usd_per_glm: Option<String>,
    /// How long ago that price was last confirmed.
    rate_age_seconds: Option<u64>,
}

impl From<Amounts> for AmountsBody {
    fn from(amounts: Amounts) -> Self {
        Self { cpu: amounts.cpu_cores, memory: amounts.memory_gb, storage: amounts.storage_gb }
    }
}

impl From<ResourceReport> for ResourcesBody {
    fn from(report: ResourceReport) -> Self {
        Self {
            total: report.total.into(),
            allocatable: report.allocatable.into(),
            allocated: report.allocated.into(),
            available: report.available.into(),
        }
    }
}

impl From<&Prices> for Pricing {
    fn from(prices: &Prices) -> Self {
        // What is shown as a JSON number, as clients read it; nothing is computed with it.
        let number = |price: Decimal| price.to_f64().unwrap_or_default();
        let glm = |price: fn(&MonthlyPrices) -> Decimal| {
            prices.glm.as_ref().map(|glm| price(glm).to_string())
        };
        let rate = prices.rate.as_ref();
        Self {
            usd_per_core_month: number(prices.usd.per_core),
            usd_per_gb_ram_month: number(prices.usd.per_gb_ram),
            usd_per_gb_storage_month: number(prices.usd.per_gb_storage),
            glm_per_core_month: glm(|glm| glm.per_core),
            glm_per_gb_ram_month: glm(|glm| glm.per_gb_ram),
            glm_per_gb_storage_month: glm(|glm| glm.per_gb_storage),
            usd_per_glm: rate.map(|rate| rate.usd_per_glm.to_string()),
            rate_age_seconds: rate.map(|rate| rate.age(Timestamp::now()).as_secs()),
        }
    }
}

pub fn routes() -> Router<AnyState> {
    Router::new().route(&versioned("/summary"), get(summary))
}

/// All that a dashboard shows
///
/// VMs that were made by signed requests are shown to their owners alone, and counted for everybody.
#[utoipa::path(get, path = "/summary", context_path = "/api/v1", tag = "provider",
    responses((status = 200, body = Summary)))]
pub async fn summary(State(state): State<AnyState>, caller: Caller) -> Response {
    let ApiState { vms, environment, pricing, .. } = state.as_ref();
    let list = vms.list();
    let summary = Summary {
        status: "running",
        version: env!("CARGO_PKG_VERSION"),
        environment: *environment,
        resources: vms.resources().into(),
        reachability: state.reachability.borrow().clone(),
        advertisers: state.advertising.as_ref().map(Advertising::reports).unwrap_or_default(),
        pricing: (&*pricing.borrow()).into(),
        backends: vms.backends().names(),
        vms: visible(&list, caller, &state).collect(),
        vms_total: list.len(),
    };
    Json(summary).into_response()
}
