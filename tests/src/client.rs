//! A requestor's side of the API: sends what it is told and hands back what came, without opinions.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::{Method, header::HeaderMap};
use serde_json::Value;

/// Longer than any answer may take: a create that is waited for boots a whole machine.
const ANSWER_DEADLINE: Duration = Duration::from_secs(360);

/// Speaks to one provider.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    origin: String,
}

/// What the provider said.
#[derive(Debug, Clone)]
pub struct Answer {
    pub request: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Client {
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(port: u16) -> Result<Client> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(ANSWER_DEADLINE)
            // Connections that were open when a provider ended would fail the first request to the next one.
            .pool_max_idle_per_host(0)
            .build()
            .context("making an HTTP client")?;
        Ok(Client { http, origin: format!("http://127.0.0.1:{port}") })
    }

    /// `path` below `/api/v1`.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, &format!("/api/v1{path}"), None).await
    }

    /// # Errors
    /// When no answer comes.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(Method::POST, &format!("/api/v1{path}"), Some(body.to_string())).await
    }

    /// Without a body.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn post_nothing(&self, path: &str) -> Result<Answer> {
        self.send(Method::POST, &format!("/api/v1{path}"), None).await
    }

    /// # Errors
    /// When no answer comes.
    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(Method::DELETE, &format!("/api/v1{path}"), None).await
    }

    /// Any request; `path` is the whole path.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn send(&self, method: Method, path: &str, body: Option<String>) -> Result<Answer> {
        self.perform(None, method, path, body).await
    }

    /// Any request, with this `Authorization`.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn signed(
        &self,
        authorization: &str,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Answer> {
        self.perform(Some(authorization), method, path, body).await
    }

    async fn perform(
        &self,
        authorization: Option<&str>,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Answer> {
        let name = format!("{method} {path}");
        let mut request = self.http.request(method, format!("{}{path}", self.origin));
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let answer = request.send().await.with_context(|| name.clone())?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await.with_context(|| format!("the body of {name}"))?;
        Ok(Answer { request: name, status, headers, text })
    }
}

impl Answer {
    /// The body of an answer with this status.
    ///
    /// # Errors
    /// When the status is another, or the body is no JSON; the text holds the whole answer.
    pub fn expect(&self, status: u16) -> Result<Value> {
        if self.status != status {
            bail!("{} answered {} instead of {status}: {}", self.request, self.status, self.text);
        }
        self.json()
    }

    /// An empty body is `null`.
    ///
    /// # Errors
    /// When the body is no JSON.
    pub fn json(&self) -> Result<Value> {
        if self.text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.text)
            .with_context(|| format!("{} answered no JSON: {}", self.request, self.text))
    }

    /// The error's text, of an answer with this status in the documented form.
    ///
    /// # Errors
    /// When the status is another, or the body lacks something that clients read.
    pub fn refusal(&self, status: u16) -> Result<String> {
        let body = self.expect(status)?;
        for key in ["code", "request_id"] {
            if !body[key].is_string() {
                bail!("{} answered an error without {key}: {}", self.request, self.text);
            }
        }
        match &body["detail"] {
            Value::String(text) => Ok(text.clone()),
            Value::Array(problems) if !problems.is_empty() => Ok(self.text.clone()),
            _ => bail!("{} answered an error without detail: {}", self.request, self.text),
        }
    }
}
