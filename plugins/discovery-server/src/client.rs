//! Requests to the server, one function each.

use core::time::Duration;

use golem_provider_sdk::{
    Error, Result,
    advertiser::Query,
    http::{self, Method, Request},
    signer,
};

use crate::{
    answers,
    entry::{Entry, Post},
    settings::Settings,
};

const TIMEOUT: Duration = Duration::from_secs(15);

pub struct Client {
    /// Of the advertisements, without a slash at its end.
    advertisements: String,
}

impl Client {
    pub fn new(settings: &Settings) -> Self {
        let url = settings.url.trim_end_matches('/');
        Self { advertisements: format!("{url}/api/v1/advertisements") }
    }

    /// Where people find the entry of a provider.
    pub fn address_of(&self, provider_id: &str) -> String {
        format!("{}/{provider_id}", self.advertisements)
    }

    pub fn entry_of(&self, provider_id: &str) -> Result<Option<Entry>> {
        let response = http::send(&self.request(Method::Get, self.address_of(provider_id)))?;
        answers::read("looking up the entry", &response)
    }

    /// Makes the entry, or puts this in its place.
    pub fn post(&self, provider_id: &str, post: &Post) -> Result<()> {
        let body = serde_json::to_vec(post)
            .map_err(|error| Error::Internal(format!("what is posted is no JSON: {error}")))?;
        let request = self.request(Method::Post, self.advertisements.clone());
        let request = signed(request, provider_id, &body)?.json(body);
        match answers::done("posting the advertisement", &http::send(&request)?)? {
            true => Ok(()),
            false => Err(Error::Unavailable("the server has lost the advertisement".into())),
        }
    }

    /// No entry is a success.
    pub fn delete(&self, provider_id: &str) -> Result<()> {
        let request = self.request(Method::Delete, self.address_of(provider_id));
        let request = signed(request, provider_id, provider_id.as_bytes())?;
        answers::done("taking the advertisement away", &http::send(&request)?).map(drop)
    }

    pub fn search(&self, query: &Query) -> Result<Vec<Entry>> {
        // This server knows neither networks nor a limit.
        let wanted = [
            ("cpu", query.min_cpu_cores),
            ("memory", query.min_memory_gb),
            ("storage", query.min_storage_gb),
        ];
        let wanted: Vec<String> = wanted
            .into_iter()
            .filter_map(|(name, least)| {
                Some(format!("{name}={}", least.filter(|least| *least > 0)?))
            })
            .collect();
        let url = match wanted.is_empty() {
            true => self.advertisements.clone(),
            false => format!("{}?{}", self.advertisements, wanted.join("&")),
        };
        let response = http::send(&self.request(Method::Get, url))?;
        Ok(answers::read("searching", &response)?.unwrap_or_default())
    }

    fn request(&self, method: Method, url: String) -> Request {
        Request::new(method, url, TIMEOUT)
    }
}

/// With who asks, and the EIP-191 signature over the body; over the id where there is no body.
fn signed(request: Request, provider_id: &str, over: &[u8]) -> Result<Request> {
    let signature = format!("0x{}", hex::encode(signer::sign_message(over)?));
    Ok(request.header("x-provider-id", provider_id).header("x-provider-signature", signature))
}
