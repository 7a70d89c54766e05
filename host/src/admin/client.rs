//! Asks a provider that runs.

use std::{path::Path, time::Duration};

use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    protocol::{
        GrantChange, InstallRequest, PluginReport, Refusal, StopRequest, UseRequest,
        WithdrawRequest,
    },
    server::socket_path,
};
use crate::{
    doctor::Examination,
    payments::{
        pricing::{PriceChange, Prices},
        streams::{
            PaymentRules, RulesChange,
            ledger::{Ledger, Withdrawal},
        },
    },
    plugins::{Kind, installation::Grant},
    status::Status,
};

/// Compiling and probing a plugin takes seconds, on a slow machine many.
const DEADLINE: Duration = Duration::from_secs(180);

/// A withdrawal waits for its turn and for blocks.
const WITHDRAWAL_DEADLINE: Duration = Duration::from_secs(600);

/// Speaks to the provider with one data directory.
pub struct AdminClient(reqwest::Client);

/// The provider did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0}")]
    Refused(String),
    #[error("the provider that runs does not answer: {0}")]
    Silent(#[from] reqwest::Error),
}

impl AdminClient {
    /// Absent where no provider runs.
    ///
    /// # Errors
    /// The client cannot be made.
    pub async fn connect(data_dir: &Path) -> Result<Option<Self>, ClientError> {
        let path = socket_path(data_dir);
        // A socket that a crash has left refuses.
        if tokio::net::UnixStream::connect(&path).await.is_err() {
            return Ok(None);
        }
        let client = reqwest::Client::builder().unix_socket(path).timeout(DEADLINE).build()?;
        Ok(Some(Self(client)))
    }

    /// # Errors
    /// See [`ClientError`]; so for every call here.
    pub async fn plugins(&self) -> Result<Vec<PluginReport>, ClientError> {
        self.ask(Method::GET, "plugins", None::<&()>).await
    }

    pub async fn install(&self, request: &InstallRequest) -> Result<PluginReport, ClientError> {
        self.ask(Method::POST, "plugins", Some(request)).await
    }

    pub async fn remove(&self, name: &str) -> Result<(), ClientError> {
        self.ask(Method::DELETE, &format!("plugins/{name}"), None::<&()>).await
    }

    pub async fn set_enabled(&self, name: &str, enabled: bool) -> Result<(), ClientError> {
        let change = if enabled { "enable" } else { "disable" };
        self.ask(Method::POST, &format!("plugins/{name}/{change}"), None::<&()>).await
    }

    pub async fn grant(&self, name: &str, grants: Vec<Grant>) -> Result<(), ClientError> {
        let change = GrantChange { grants };
        self.ask(Method::POST, &format!("plugins/{name}/grant"), Some(&change)).await
    }

    pub async fn revoke(&self, name: &str, grants: Vec<Grant>) -> Result<(), ClientError> {
        let change = GrantChange { grants };
        self.ask(Method::POST, &format!("plugins/{name}/revoke"), Some(&change)).await
    }

    pub async fn use_plugins(&self, kind: Kind, names: &[String]) -> Result<(), ClientError> {
        let request = UseRequest { kind, names: names.to_vec() };
        self.ask(Method::POST, "plugins-in-use", Some(&request)).await
    }

    pub async fn prices(&self) -> Result<Prices, ClientError> {
        self.ask(Method::GET, "pricing", None::<&()>).await
    }

    /// Answers the prices that count from now on.
    pub async fn set_prices(&self, change: &PriceChange) -> Result<Prices, ClientError> {
        self.ask(Method::POST, "pricing", Some(change)).await
    }

    /// What was ever earned.
    pub async fn ledger(&self) -> Result<Ledger, ClientError> {
        self.ask(Method::GET, "streams", None::<&()>).await
    }

    /// Collects what a stream owes; takes until that is mined.
    pub async fn withdraw(
        &self,
        contract: &str,
        stream_id: &str,
    ) -> Result<Withdrawal, ClientError> {
        let (contract, stream_id) = (contract.to_owned(), stream_id.to_owned());
        let request = WithdrawRequest { contract, stream_id };
        self.ask_for(WITHDRAWAL_DEADLINE, Method::POST, "withdrawals", Some(&request)).await
    }

    /// Answers the rules that count from now on.
    pub async fn change_payment_rules(
        &self,
        change: &RulesChange,
    ) -> Result<PaymentRules, ClientError> {
        self.ask(Method::POST, "payment-rules", Some(change)).await
    }

    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(Method::GET, "status", None::<&()>).await
    }

    pub async fn examinations(&self) -> Result<Vec<Examination>, ClientError> {
        self.ask(Method::GET, "examinations", None::<&()>).await
    }

    /// Deletes a VM, whoever it belongs to; answers when it is gone.
    pub async fn delete_vm(&self, id: &str) -> Result<(), ClientError> {
        self.ask(Method::DELETE, &format!("vms/{id}"), None::<&()>).await
    }

    /// Tells it to end, which it has not done yet when this returns.
    pub async fn stop(&self, stop_vms: Option<bool>) -> Result<(), ClientError> {
        self.ask(Method::POST, "stop", Some(&StopRequest { stop_vms })).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        self.ask_for(DEADLINE, method, path, body).await
    }

    async fn ask_for<T: DeserializeOwned>(
        &self,
        deadline: Duration,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let mut request = self.0.request(method, format!("http://provider/{path}"));
        request = request.timeout(deadline);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        if answer.status().is_success() {
            return Ok(answer.json().await?);
        }
        let status = answer.status();
        let refusal: Result<Refusal, _> = answer.json().await;
        Err(ClientError::Refused(
            refusal.map_or_else(|_| format!("it answered {status}"), |refusal| refusal.detail),
        ))
    }
}
