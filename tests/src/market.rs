//! What it takes to rent for money on this computer alone: a chain with the payment contract and a token, and a price of GLM.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    Anvil, Client, PriceSource, Setup,
    anvil::ACCOUNTS,
    contracts::{NewStream, StreamContract, account},
};
use alloy::primitives::{Address, U256};

/// The account that a paid provider has.
pub const PROVIDER: usize = 2;
/// The account of a requestor.
pub const REQUESTOR: usize = 1;

/// A chain and a price.
pub struct Market {
    pub chain: Anvil,
    pub contract: StreamContract,
    pub prices: PriceSource,
}

impl Market {
    /// The requestor has a million tokens, and the contract may take them.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn open() -> Result<Market> {
        Market::open_with(&[]).await
    }

    /// The same with further arguments for the chain.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn open_with(arguments: &[&str]) -> Result<Market> {
        let chain = Anvil::start_with(0, arguments).await?;
        let contract = StreamContract::deploy(&chain).await?;
        let million = U256::from(10).pow(U256::from(24));
        contract.fund(&chain, account(REQUESTOR), million).await?;
        let prices = PriceSource::start().await?;
        prices.say("0.25");
        Ok(Market { chain, contract, prices })
    }

    /// Opens a stream of the requestor to the provider, in the token.
    ///
    /// # Errors
    /// When the contract refuses.
    pub async fn stream(&self, wei_per_second: u128, seconds: u64) -> Result<U256> {
        let deposit_wei = U256::from(wei_per_second) * U256::from(seconds);
        let stream = NewStream {
            sender: account(REQUESTOR),
            recipient: account(PROVIDER),
            token: self.contract.token,
            deposit_wei,
            wei_per_second,
        };
        self.contract.create(&self.chain, &stream).await
    }
}

impl Setup {
    /// A provider that is paid on this market, reached by this URL, and looks at its streams every second.
    #[must_use]
    pub fn paid_on(self, market: &Market, rpc_url: &str) -> Setup {
        self.in_production("127.0.0.1")
            .with("PRICING_UPDATE_ENABLED", "true")
            .with("COINGECKO_API_URL", market.prices.url())
            .with("POLYGON_RPC_URL", rpc_url)
            .with("STREAM_PAYMENT_ADDRESS", market.contract.address.to_checksum(None))
            .with("GLM_TOKEN_ADDRESS", market.contract.token.to_checksum(None))
            .with("ETHEREUM_PRIVATE_KEY", ACCOUNTS[PROVIDER].1)
            .with("RATE_LIMIT_PER_MINUTE", 0)
            .with("STREAM_MONITOR_ENABLED", "true")
            .with("STREAM_MONITOR_INTERVAL_SECONDS", 1)
    }
}

/// What a machine costs a second, as a requestor computes it from the prices that a provider tells.
///
/// # Errors
/// When it tells none.
pub async fn rate(client: &Client, cpu: u128, memory: u128, storage: u128) -> Result<u128> {
    let summary = client.get("/summary").await?.expect(200)?;
    let price = |field: &str| wei(&summary["pricing"][field]).with_context(|| format!("{summary}"));
    let month = price("glm_per_core_month")? * cpu
        + price("glm_per_gb_ram_month")? * memory
        + price("glm_per_gb_storage_month")? * storage;
    ensure!(month > 0, "machines are free: {summary}");
    Ok(month / (730 * 3600))
}

/// A decimal in the token's smallest part.
fn wei(amount: &Value) -> Option<u128> {
    let (whole, fraction) = match amount.as_str()?.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (amount.as_str()?, ""),
    };
    format!("{whole}{fraction:0<18}").parse().ok()
}

/// Whom the provider says it is, where it is paid, and in what.
///
/// # Errors
/// When it does not say it.
pub async fn whom_to_pay(client: &Client) -> Result<(Address, Address, Address)> {
    let info = client.get("/provider/info").await?.expect(200)?;
    let address = |field: &str| -> Result<Address> {
        info[field].as_str().and_then(|text| text.parse().ok()).with_context(|| format!("{info}"))
    };
    Ok((address("provider_id")?, address("stream_payment_address")?, address("glm_token_address")?))
}
