//! Questions to the nodes of chains: each has a deadline and an answer of bounded size, and where one node does not answer,
//! the next one is asked. URLs carry the operator's keys, so no error holds more of one than its host.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use alloy::{
    primitives::{Address, Bytes, U64, U256},
    rpc::json_rpc::{ErrorPayload, Id, Request, Response, ResponsePayload},
};
use async_trait::async_trait;
use futures_util::future::join_all;
use reqwest::{StatusCode, header::CONTENT_TYPE};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{json, value::RawValue};
use tokio::time::Instant;
use url::Url;

use super::error::{ChainError, RpcError};
use crate::{
    http_client::{self, AskError},
    settings::Secret,
};

/// How long one node may take to answer before the next one is asked.
const ONE_NODE: Duration = Duration::from_secs(10);

/// Of one answer.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// A node that did not answer is asked after the others for so long.
const REST: Duration = Duration::from_secs(60);

/// Questions in one exchange. Nodes have bounds of their own; those of the public ones are above this.
const BATCH: usize = 100;

/// Questions that are under way at once where a node takes them one by one only.
const SIDE_BY_SIDE: usize = 8;

/// `balanceOf(address)` of an ERC-20 token.
const BALANCE_OF: [u8; 4] = [0x70, 0xa0, 0x82, 0x31];

/// Codes of EIP-1474 by which a node says that it cannot answer now, and another one may.
const UNAVAILABLE: i64 = -32002;
const LIMIT_EXCEEDED: i64 = -32005;

/// All chains. Clones are the same.
#[derive(Clone)]
pub struct Nodes(Arc<BTreeMap<String, Arc<Chain>>>);

/// One chain.
pub struct Chain {
    name: String,
    nodes: Vec<Node>,
    /// Of the next question.
    id: AtomicU64,
}

struct Node {
    /// For people: without path and query, which may be secret.
    host: String,
    url: Url,
    client: reqwest::Client,
    failed_at: Mutex<Option<Instant>>,
}

/// Why one node gave no answer.
enum NoAnswer {
    Reason(String),
    Refused(RpcError),
}

/// What answers questions about one chain.
#[async_trait]
pub trait AskChain: Send + Sync {
    fn name(&self) -> &str;

    /// `params` and the answer are JSON.
    async fn request(&self, method: &str, params: &RawValue) -> Result<Box<RawValue>, ChainError>;
}

/// Asks, and reads the answer.
///
/// # Errors
/// There is none, or it is something else.
pub async fn ask<T: DeserializeOwned>(
    chain: &dyn AskChain,
    method: &str,
    params: impl Serialize,
) -> Result<T, ChainError> {
    let malformed =
        || ChainError::Malformed { chain: chain.name().to_owned(), method: method.to_owned() };
    let params = serde_json::value::to_raw_value(&params).map_err(|_| malformed())?;
    let answer = chain.request(method, &params).await?;
    serde_json::from_str(answer.get()).map_err(|_| malformed())
}

impl Nodes {
    /// URLs that are none were refused with the settings.
    ///
    /// # Errors
    /// No HTTP client can be made.
    pub fn new(urls: &BTreeMap<String, Vec<Secret>>) -> Result<Nodes, AskError> {
        let client = http_client::client_without_redirects(ONE_NODE)?;
        let node = |url: &Secret| {
            let url = Url::parse(url.expose()).ok()?;
            let host = url.host_str().unwrap_or("a node").to_owned();
            Some(Node { host, url, client: client.clone(), failed_at: Mutex::default() })
        };
        let chain = |name: &String, urls: &Vec<Secret>| Chain {
            name: name.clone(),
            nodes: urls.iter().filter_map(node).collect(),
            id: AtomicU64::new(1),
        };
        let chains = urls.iter().map(|(name, urls)| (name.clone(), Arc::new(chain(name, urls))));
        Ok(Nodes(Arc::new(chains.filter(|(_, chain)| !chain.nodes.is_empty()).collect())))
    }

    /// # Errors
    /// No node of it is configured.
    pub fn chain(&self, name: &str) -> Result<&Arc<Chain>, ChainError> {
        self.0.get(name).ok_or_else(|| ChainError::NotConfigured { chain: name.to_owned() })
    }

    /// The names of the chains that have a node.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Asks one node several things, each a method and its parameters; answers come in their order.
    ///
    /// # Errors
    /// No node answers all of it.
    pub async fn request_all(
        &self,
        chain: &str,
        questions: &[(String, Box<RawValue>)],
    ) -> Result<Vec<Result<Box<RawValue>, RpcError>>, ChainError> {
        self.chain(chain)?.request_all(questions).await
    }

    /// The number of a chain.
    ///
    /// # Errors
    /// See [`ChainError`]; so for every question here.
    pub async fn id(&self, chain: &str) -> Result<u64, ChainError> {
        let id: U64 = ask(&**self.chain(chain)?, "eth_chainId", json!([])).await?;
        Ok(id.to())
    }

    /// What an address has of the chain's own coin.
    pub async fn balance_wei(&self, chain: &str, address: Address) -> Result<U256, ChainError> {
        ask(&**self.chain(chain)?, "eth_getBalance", (address, "latest")).await
    }

    /// What an address has of a token, in its smallest part.
    pub async fn token_balance_wei(
        &self,
        chain: &str,
        token: Address,
        address: Address,
    ) -> Result<U256, ChainError> {
        let call = [&BALANCE_OF[..], address.into_word().as_slice()].concat();
        let call = json!({ "to": token, "data": Bytes::from(call) });
        let answer: Bytes = ask(&**self.chain(chain)?, "eth_call", (call, "latest")).await?;
        let chain = chain.to_owned();
        match answer.len() {
            // Where there is no contract, a call succeeds with nothing.
            0 => Err(ChainError::NoToken { chain, token }),
            32 => Ok(U256::from_be_slice(&answer)),
            _ => Err(ChainError::Malformed { chain, method: "balanceOf".to_owned() }),
        }
    }
}

#[async_trait]
impl AskChain for Chain {
    fn name(&self) -> &str {
        &self.name
    }

    async fn request(&self, method: &str, params: &RawValue) -> Result<Box<RawValue>, ChainError> {
        let mut reasons = Vec::new();
        let mut refusal = None;
        for node in self.in_turn() {
            let id = self.id.fetch_add(1, Ordering::Relaxed);
            match node.ask(id, method, params).await {
                Ok(answer) => {
                    node.failed_at(None);
                    return Ok(answer);
                }
                Err(NoAnswer::Refused(refused)) if refused.is_for_now() => {
                    refusal = Some(ChainError::Refused(refused));
                }
                Err(NoAnswer::Refused(refused)) => return Err(ChainError::Refused(refused)),
                Err(NoAnswer::Reason(reason)) => {
                    node.failed_at(Some(Instant::now()));
                    reasons.push(format!("{}: {reason}", node.host));
                }
            }
        }
        Err(refusal.unwrap_or_else(|| ChainError::Unreachable {
            chain: self.name.clone(),
            reasons: reasons.join("; "),
        }))
    }
}

impl Chain {
    async fn request_all(
        &self,
        questions: &[(String, Box<RawValue>)],
    ) -> Result<Vec<Result<Box<RawValue>, RpcError>>, ChainError> {
        let mut reasons = Vec::new();
        let count = questions.len() as u64;
        for node in self.in_turn() {
            let first_id = self.id.fetch_add(count, Ordering::Relaxed);
            let mut answers = node.ask_all(first_id, questions).await;
            if matches!(&answers, Err(NoAnswer::Refused(refused)) if !refused.is_for_now()) {
                answers = node.ask_one_by_one(first_id, questions).await;
            }
            match answers {
                Ok(answers) => {
                    node.failed_at(None);
                    return Ok(answers);
                }
                Err(NoAnswer::Refused(refused)) => {
                    reasons.push(format!("{}: {refused}", node.host));
                }
                Err(NoAnswer::Reason(reason)) => {
                    node.failed_at(Some(Instant::now()));
                    reasons.push(format!("{}: {reason}", node.host));
                }
            }
        }
        let chain = self.name.clone();
        Err(ChainError::Unreachable { chain, reasons: reasons.join("; ") })
    }

    /// In the operator's order, but those that failed a short while ago come last.
    fn in_turn(&self) -> Vec<&Node> {
        let mut nodes: Vec<&Node> = self.nodes.iter().collect();
        nodes.sort_by_key(|node| node.rests());
        nodes
    }
}

impl Node {
    fn rests(&self) -> bool {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed_at.is_some_and(|failed_at| failed_at.elapsed() < REST)
    }

    fn failed_at(&self, when: Option<Instant>) {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = when;
    }

    async fn ask(
        &self,
        id: u64,
        method: &str,
        params: &RawValue,
    ) -> Result<Box<RawValue>, NoAnswer> {
        let question = Request::new(method.to_owned(), Id::Number(id), params);
        let (status, body) = self.post(&question).await?;
        // Some nodes put a status of failure beside their refusals.
        let answer: Result<Response, _> = serde_json::from_slice(&body);
        match answer.map(|answer| answer.payload) {
            Ok(ResponsePayload::Success(answer)) if status.is_success() => Ok(answer),
            Ok(ResponsePayload::Failure(refusal)) => Err(NoAnswer::Refused(refusal.into())),
            _ => Err(no_json_rpc(status, &body)),
        }
    }

    /// Several questions in as few exchanges as it takes, the first of them with this id.
    async fn ask_all(
        &self,
        first_id: u64,
        questions: &[(String, Box<RawValue>)],
    ) -> Result<Vec<Result<Box<RawValue>, RpcError>>, NoAnswer> {
        let mut answers = Vec::with_capacity(questions.len());
        for (batch, first_id) in questions.chunks(BATCH).zip((first_id..).step_by(BATCH)) {
            let question = |((method, params), id): (&(String, Box<RawValue>), u64)| {
                Request::new(method.clone(), Id::Number(id), params.clone())
            };
            let asked: Vec<_> = batch.iter().zip(first_id..).map(question).collect();
            let (status, body) = self.post(&asked).await?;
            // A node that takes no batches answers all of it with one refusal.
            let as_one: Result<Response, _> = serde_json::from_slice(&body);
            if let Ok(Response { payload: ResponsePayload::Failure(refusal), .. }) = as_one {
                return Err(NoAnswer::Refused(refusal.into()));
            }
            let answered: Result<Vec<Response>, _> = serde_json::from_slice(&body);
            let Ok(answered) = answered else { return Err(no_json_rpc(status, &body)) };
            // They may come in any order.
            let mut by_id: BTreeMap<u64, ResponsePayload> = answered
                .into_iter()
                .filter_map(|answer| Some((answer.id.as_number()?, answer.payload)))
                .collect();
            for (id, _) in (first_id..).zip(batch) {
                answers.push(match by_id.remove(&id) {
                    Some(ResponsePayload::Success(answer)) => Ok(answer),
                    Some(ResponsePayload::Failure(refusal)) => {
                        let refusal = RpcError::from(refusal);
                        if refusal.is_for_now() {
                            return Err(NoAnswer::Refused(refusal));
                        }
                        Err(refusal)
                    }
                    None => {
                        let text = format!("it left {} of its answers out", batch.len());
                        return Err(NoAnswer::Reason(text));
                    }
                });
            }
        }
        Ok(answers)
    }

    /// For a node that takes no batches.
    async fn ask_one_by_one(
        &self,
        first_id: u64,
        questions: &[(String, Box<RawValue>)],
    ) -> Result<Vec<Result<Box<RawValue>, RpcError>>, NoAnswer> {
        let mut answers = Vec::with_capacity(questions.len());
        for (batch, first_id) in
            questions.chunks(SIDE_BY_SIDE).zip((first_id..).step_by(SIDE_BY_SIDE))
        {
            let asking = batch.iter().zip(first_id..);
            let asking = asking.map(|((method, params), id)| self.ask(id, method, params));
            for answer in join_all(asking).await {
                answers.push(match answer {
                    Ok(answer) => Ok(answer),
                    Err(NoAnswer::Refused(refused)) if !refused.is_for_now() => Err(refused),
                    Err(no_answer) => return Err(no_answer),
                });
            }
        }
        Ok(answers)
    }

    async fn post(&self, question: &impl Serialize) -> Result<(StatusCode, Vec<u8>), NoAnswer> {
        let reason = |text: String| NoAnswer::Reason(text);
        let question = serde_json::to_vec(question).map_err(|error| reason(error.to_string()))?;
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(question);
        http_client::answer(request, MAX_ANSWER_BYTES)
            .await
            .map_err(|error| reason(error.to_string()))
    }
}

fn no_json_rpc(status: StatusCode, body: &[u8]) -> NoAnswer {
    NoAnswer::Reason(if status.is_success() {
        "its answer is no JSON-RPC".to_owned()
    } else {
        http_client::refused(status, body).to_string()
    })
}

impl From<ErrorPayload> for RpcError {
    fn from(refusal: ErrorPayload) -> Self {
        Self {
            code: refusal.code,
            message: http_client::one_line(&refusal.message),
            data: refusal.data.map(|data| data.get().to_owned()),
        }
    }
}

impl RpcError {
    /// Another node may answer, or the same one later.
    fn is_for_now(&self) -> bool {
        matches!(self.code, UNAVAILABLE | LIMIT_EXCEEDED)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A node that says the same to everyone.
    async fn saying(status: &str, body: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\nlocation: /elsewhere\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        format!("http://{address}/?key=a-secret")
    }

    async fn asked(urls: &[&str]) -> Result<u64, ChainError> {
        let urls = urls.iter().map(|url| Secret::new(*url)).collect();
        let nodes = Nodes::new(&BTreeMap::from([("golem-base".to_owned(), urls)])).unwrap();
        let answer = nodes.id("golem-base").await;
        if let Err(error) = &answer {
            let text = error.to_string();
            assert!(!text.contains("secret") && text.lines().count() == 1, "{text}");
        }
        answer
    }

    #[tokio::test]
    async fn the_next_node_is_asked_where_one_gives_no_answer_and_no_error_shows_a_url() {
        let fine = saying("200 OK", r#"{"jsonrpc":"2.0","id":1,"result":"0x539"}"#).await;
        let refusing = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no\nsuch"}}"#;
        let refusing = saying("400 Bad Request", refusing).await;
        let busy = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"too many"}}"#;
        let busy = saying("200 OK", busy).await;
        let limited = saying("429 Too Many Requests", "slow down").await;
        let moved = saying("302 Found", "").await;
        let other = saying("200 OK", "<html>").await;
        let long = format!(r#"{{"jsonrpc":"2.0","id":1,"result":"{}"}}"#, "0".repeat(4 << 20));
        let long = saying("200 OK", &long).await;
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let nobody = format!("http://{nobody}/a-secret");
        for broken in [&busy, &limited, &moved, &other, &long, &nobody] {
            assert_eq!(asked(&[broken, &fine]).await, Ok(1337));
            assert!(asked(&[broken]).await.is_err());
        }
        let text = asked(&[&limited, &nobody, &long]).await.unwrap_err().to_string();
        assert!(
            text.contains("429") && text.contains("refused") && text.contains("longer"),
            "{text}"
        );
        // What one node refuses, the others would refuse too.
        let refused = asked(&[&refusing, &fine]).await.unwrap_err().to_string();
        assert_eq!(refused, "the node of the chain refuses: no such (code -32000)");
        let text = asked(&[]).await.unwrap_err().to_string();
        assert!(text.ends_with("set GOLEM_PROVIDER_GOLEM_BASE_RPC_URL"), "{text}");
    }

    #[tokio::test]
    async fn a_node_that_failed_rests_and_the_others_are_asked_first() {
        let url = Secret::new("http://127.0.0.1:1/");
        let urls = BTreeMap::from([("payments".to_owned(), vec![url.clone(), url])]);
        let nodes = Nodes::new(&urls).unwrap();
        let chain = nodes.chain("payments").unwrap();
        chain.nodes[0].failed_at(Some(Instant::now()));
        assert!(std::ptr::eq(chain.in_turn()[0], &chain.nodes[1]));
        chain.nodes[0].failed_at(None);
        assert!(std::ptr::eq(chain.in_turn()[0], &chain.nodes[0]));
    }
}
