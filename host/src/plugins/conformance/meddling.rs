//! A chain between the plugin and the one that the harness has. It passes everything on and counts, until it is told to get in
//! the way: then nodes are down, talk nonsense, or a contract is not the one that was meant.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

use crate::plugins::{
    Failure, FailureKind,
    ethereum::{ChainFailure, Ethereum, Receipt, RpcRefusal, Transaction},
};

/// What becomes of questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meddling {
    None,
    /// No node answers.
    Down,
    /// Every answer is this JSON.
    Answers(String),
    /// A contract answers this JSON to every call, and this is its code.
    Contract {
        answers: String,
        code: String,
    },
}

pub struct MeddledChain {
    chain: Arc<dyn Ethereum>,
    meddling: Mutex<Meddling>,
    exchanges: AtomicUsize,
    was_called: AtomicBool,
    was_sent: AtomicBool,
}

impl MeddledChain {
    pub fn new(chain: Arc<dyn Ethereum>) -> Self {
        Self {
            chain,
            meddling: Mutex::new(Meddling::None),
            exchanges: AtomicUsize::new(0),
            was_called: AtomicBool::new(false),
            was_sent: AtomicBool::new(false),
        }
    }

    pub fn set(&self, meddling: Meddling) {
        *self.meddling.lock().unwrap_or_else(PoisonError::into_inner) = meddling;
    }

    /// How many times a node was asked something.
    pub fn exchanges(&self) -> usize {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// Was a contract ever asked?
    pub fn was_called(&self) -> bool {
        self.was_called.load(Ordering::Relaxed)
    }

    /// Did the plugin try to send a transaction?
    pub fn was_sent(&self) -> bool {
        self.was_sent.load(Ordering::Relaxed)
    }

    /// The chain itself.
    pub fn beneath(&self) -> &dyn Ethereum {
        &*self.chain
    }

    /// What is answered instead of what the chain would.
    fn instead(&self, chain: &str, method: &str) -> Result<Option<String>, Failure> {
        if method == "eth_call" {
            self.was_called.store(true, Ordering::Relaxed);
        }
        Ok(match &*self.meddling.lock().unwrap_or_else(PoisonError::into_inner) {
            Meddling::None => None,
            Meddling::Down => {
                let message = format!("no node of {chain} answers, for the time of this check");
                return Err(Failure::new(FailureKind::Unavailable, message));
            }
            Meddling::Answers(answer) => Some(answer.clone()),
            Meddling::Contract { answers, .. } if method == "eth_call" => Some(answers.clone()),
            Meddling::Contract { code, .. } if method == "eth_getCode" => Some(code.clone()),
            Meddling::Contract { .. } => None,
        })
    }
}

#[async_trait]
impl Ethereum for MeddledChain {
    fn address(&self) -> String {
        self.chain.address()
    }

    async fn sign_message(&self, message: &[u8]) -> Result<[u8; 65], Failure> {
        self.chain.sign_message(message).await
    }

    async fn request(
        &self,
        chain: &str,
        method: &str,
        params: &str,
    ) -> Result<String, ChainFailure> {
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        match self.instead(chain, method).map_err(ChainFailure::Provider)? {
            Some(answer) => Ok(answer),
            None => self.chain.request(chain, method, params).await,
        }
    }

    async fn request_all(
        &self,
        chain: &str,
        requests: &[(String, String)],
    ) -> Result<Vec<Result<String, RpcRefusal>>, Failure> {
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        let instead = requests.iter().map(|(method, _)| self.instead(chain, method));
        let instead: Vec<Option<String>> = instead.collect::<Result<_, _>>()?;
        if instead.iter().all(Option::is_some) {
            return Ok(instead.into_iter().flatten().map(Ok).collect());
        }
        let answers = self.chain.request_all(chain, requests).await?;
        Ok(answers
            .into_iter()
            .zip(instead)
            .map(|(answer, instead)| instead.map_or(answer, Ok))
            .collect())
    }

    async fn send_transaction(
        &self,
        _: &str,
        _: Transaction,
        _: Duration,
    ) -> Result<Receipt, ChainFailure> {
        self.was_sent.store(true, Ordering::Relaxed);
        let message = "nothing is sent while a payment verifier is being tested";
        Err(ChainFailure::Provider(Failure::new(FailureKind::PermissionDenied, message)))
    }
}
