//! Contracts on the chain of a test: those in `contracts/`, put there as they were compiled, and calls and transactions with
//! any contract. A [`StreamContract`] is what payments are made with, beside a token that anybody may make more of.
//!
//! Everything is sent from accounts that the node itself signs for ([`account`], and any other after
//! `anvil_impersonateAccount`), and is mined at once.

use std::{path::Path, time::Duration};

use alloy::{
    primitives::{Address, Bytes, Log, TxHash, U256},
    rpc::types::TransactionReceipt,
};
use alloy_sol_types::{SolCall, SolEvent, SolValue};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{Anvil, anvil::ACCOUNTS, wait};

/// What the contracts in `contracts/src` understand and say.
// The macro makes a function of all the values of an event.
#[allow(clippy::too_many_arguments)]
pub mod abi {
    alloy_sol_types::sol! {
        #[derive(Debug)]
        contract StreamPayment {
            function createStream(address token, address recipient, uint256 deposit, uint128 ratePerSecond)
                external payable returns (uint256 streamId);
            function streams(uint256 streamId) external view returns (
                address token, address sender, address recipient, uint128 startTime, uint128 stopTime,
                uint128 ratePerSecond, uint256 deposit, uint256 withdrawn, bool halted
            );
            function withdraw(uint256 streamId) external;
            function terminate(uint256 streamId) external;
            function topUp(uint256 streamId, uint256 amount) external payable;
            function haltStream(uint256 streamId) external;
            function nextStreamId() external view returns (uint256);
            function oracle() external view returns (address);

            event StreamCreated(
                uint256 indexed streamId, address indexed sender, address indexed recipient, address token,
                uint256 deposit, uint256 ratePerSecond, uint256 startTime, uint256 stopTime
            );
            event Withdraw(uint256 indexed streamId, address indexed recipient, uint256 amount);
            event Terminated(uint256 indexed streamId, uint256 senderRefund, uint256 recipientPayout);
            event Halted(uint256 indexed streamId);
            event ToppedUp(uint256 indexed streamId, uint256 amount, uint128 newStopTime);
        }

        /// `MockGLM` and `FeeToken`.
        #[derive(Debug)]
        contract MockGLM {
            function mint(address to, uint256 amount) external;
            function approve(address spender, uint256 amount) external returns (bool);
            function balanceOf(address owner) external view returns (uint256);
            function transfer(address to, uint256 amount) external returns (bool);
        }

        /// Moods: 0 agrees to everything, 1 is frozen, 2 burns all gas, 3 answers false.
        #[derive(Debug)]
        contract EvilToken {
            function setMood(uint8 to) external;
        }

        /// Moods: 0 rejects coin, 1 burns all gas when it gets some, 2 accepts it.
        #[derive(Debug)]
        contract GrumpySender {
            function setMood(uint8 to) external;
            function open(address payments, address recipient, uint128 ratePerSecond)
                external payable returns (uint256 streamId);
            function terminate(address payments, uint256 streamId) external;
        }
    }
}

/// Enough for everything in here. Given, so that a transaction that fails is mined as well.
pub const GAS: u64 = 2_000_000;

const MINED_WITHIN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// One of [`ACCOUNTS`].
///
/// # Panics
/// When there is none with this number.
pub fn account(index: usize) -> Address {
    ACCOUNTS[index].0.parse().unwrap_or_else(|error| panic!("account {index}: {error}"))
}

/// The code that makes a contract of `contracts/`, without its arguments.
///
/// # Errors
/// When there is none of this name.
pub fn bytecode(name: &str) -> Result<Bytes> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../contracts/artifacts")
        .join(format!("{name}.json"));
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!("reading {}: `cargo xtask contracts` writes it", file.display())
    })?;
    let artifact: Value = serde_json::from_str(&text).context(file.display().to_string())?;
    let code = artifact["bytecode"].as_str().context("an artifact without bytecode")?;
    code.parse().context("an artifact with bytecode that is no hex")
}

impl Anvil {
    /// Puts a contract of `contracts/` on the chain. `arguments` are those of its constructor, encoded.
    ///
    /// # Errors
    /// When there is no such contract, or it is refused.
    pub async fn deploy(&self, from: Address, name: &str, arguments: &[u8]) -> Result<Address> {
        let code: Bytes = [&bytecode(name)?, arguments].concat().into();
        let receipt = self.transact(json!({ "from": from, "data": code })).await?;
        ensure!(receipt.status(), "{name} was not deployed: {receipt:?}");
        receipt.contract_address.context("a contract without an address")
    }

    /// A transaction that has to succeed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn send<C: SolCall>(
        &self,
        from: Address,
        to: Address,
        call: &C,
        wei: U256,
    ) -> Result<TransactionReceipt> {
        let receipt = self.try_send(from, to, call, wei).await?;
        if !receipt.status() {
            let why = self.call_raw(from, to, call.abi_encode().into(), wei).await?;
            anyhow::bail!("{} failed; if called again: {why:?}", C::SIGNATURE);
        }
        Ok(receipt)
    }

    /// A transaction that may fail: look at the receipt's `status()`.
    ///
    /// # Errors
    /// When it is not mined.
    pub async fn try_send<C: SolCall>(
        &self,
        from: Address,
        to: Address,
        call: &C,
        wei: U256,
    ) -> Result<TransactionReceipt> {
        let data = Bytes::from(call.abi_encode());
        self.transact(json!({ "from": from, "to": to, "data": data, "value": wei }))
            .await
            .context(C::SIGNATURE)
    }

    /// Sends a transaction that the node signs for, and waits until it is mined.
    async fn transact(&self, mut transaction: Value) -> Result<TransactionReceipt> {
        transaction["gas"] = json!(format!("{GAS:#x}"));
        let hash = self.rpc("eth_sendTransaction", json!([transaction])).await?;
        self.receipt(serde_json::from_value(hash).context("a transaction without a hash")?).await
    }

    /// Waits until a transaction is mined.
    ///
    /// # Errors
    /// When it is not, or the node does not answer.
    pub async fn receipt(&self, hash: TxHash) -> Result<TransactionReceipt> {
        let what = format!("the receipt of {hash}");
        wait::until(&what, MINED_WITHIN, PAUSE, async || {
            let receipt = self.rpc("eth_getTransactionReceipt", json!([hash])).await?;
            serde_json::from_value(receipt).with_context(|| format!("reading {what}"))
        })
        .await
    }

    /// Asks a contract at the latest block.
    ///
    /// # Errors
    /// When the call reverts, or answers with something else.
    pub async fn call<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return> {
        let answer = self.call_raw(Address::ZERO, to, call.abi_encode().into(), U256::ZERO).await?;
        let answer =
            answer.map_err(|error| anyhow::anyhow!("{} reverts: {error}", C::SIGNATURE))?;
        C::abi_decode_returns(&answer).with_context(|| format!("{} answers {answer}", C::SIGNATURE))
    }

    /// What a call would answer at the latest block, or the node's error in JSON.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn call_raw(
        &self,
        from: Address,
        to: Address,
        data: Bytes,
        wei: U256,
    ) -> Result<std::result::Result<Bytes, Value>> {
        let call = json!({
            "from": from, "to": to, "data": data, "value": wei, "gas": format!("{GAS:#x}")
        });
        Ok(match self.ask("eth_call", json!([call, "latest"])).await? {
            Ok(answer) => Ok(serde_json::from_value(answer).context("eth_call answers no bytes")?),
            Err(error) => Err(error),
        })
    }

    /// The time of the latest block, in seconds since 1970.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn block_time(&self) -> Result<u64> {
        let block = self.rpc("eth_getBlockByNumber", json!(["latest", false])).await?;
        let digits = block["timestamp"].as_str().and_then(|text| text.strip_prefix("0x"));
        u64::from_str_radix(digits.context("a block without a time")?, 16)
            .context("a block with a strange time")
    }

    /// The next block has this time, in seconds since 1970. It has to be later than that of the latest.
    ///
    /// # Errors
    /// When it is not.
    pub async fn next_block_at(&self, time: u64) -> Result<()> {
        self.rpc("evm_setNextBlockTimestamp", json!([time])).await.map(drop)
    }

    /// Makes an empty block of this time.
    ///
    /// # Errors
    /// When the time is not later than that of the latest block.
    pub async fn mine_at(&self, time: u64) -> Result<()> {
        self.next_block_at(time).await?;
        self.rpc("evm_mine", json!([])).await.map(drop)
    }

    /// Moves the chain's clock ahead and makes a block, which has the new time.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn pass_time(&self, time: Duration) -> Result<()> {
        self.rpc("evm_increaseTime", json!([time.as_secs()])).await?;
        self.rpc("evm_mine", json!([])).await.map(drop)
    }
}

/// The payment contract on a chain, and a token for it.
///
/// It keeps addresses alone, so it stays good as long as the chain has its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamContract {
    pub address: Address,
    /// A `MockGLM`.
    pub token: Address,
    /// Who may halt streams: [`account`] 3.
    pub oracle: Address,
}

/// A stream to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewStream {
    pub sender: Address,
    pub recipient: Address,
    /// Zero for the chain's own coin.
    pub token: Address,
    pub deposit_wei: U256,
    pub wei_per_second: u128,
}

impl StreamContract {
    /// Puts both on the chain, from [`account`] 0. On a new chain they have the same addresses every time.
    ///
    /// # Errors
    /// When the chain refuses.
    pub async fn deploy(chain: &Anvil) -> Result<StreamContract> {
        let (deployer, oracle) = (account(0), account(3));
        let address = chain.deploy(deployer, "StreamPayment", &oracle.abi_encode()).await?;
        let token = chain.deploy(deployer, "MockGLM", &[]).await?;
        Ok(StreamContract { address, token, oracle })
    }

    /// Gives an account so much of the token, and the contract leave to take it.
    ///
    /// # Errors
    /// When the chain refuses.
    pub async fn fund(&self, chain: &Anvil, owner: Address, amount: U256) -> Result<()> {
        let mint = abi::MockGLM::mintCall { to: owner, amount };
        chain.send(account(0), self.token, &mint, U256::ZERO).await?;
        let approve = abi::MockGLM::approveCall { spender: self.address, amount: U256::MAX };
        chain.send(owner, self.token, &approve, U256::ZERO).await.map(drop)
    }

    /// Opens a stream; gives its id. A sender who pays with the token has to have it: see [`StreamContract::fund`].
    ///
    /// # Errors
    /// When the contract refuses.
    pub async fn create(&self, chain: &Anvil, stream: &NewStream) -> Result<U256> {
        let call = abi::StreamPayment::createStreamCall {
            token: stream.token,
            recipient: stream.recipient,
            deposit: stream.deposit_wei,
            ratePerSecond: stream.wei_per_second,
        };
        let wei = if stream.token.is_zero() { stream.deposit_wei } else { U256::ZERO };
        let receipt = chain.send(stream.sender, self.address, &call, wei).await?;
        let created = self.events::<abi::StreamPayment::StreamCreated>(&receipt);
        created.first().map(|event| event.streamId).context("a stream was opened without a word")
    }

    /// Adds to a stream's deposit, from its sender.
    ///
    /// # Errors
    /// When the contract refuses.
    pub async fn top_up(
        &self,
        chain: &Anvil,
        id: U256,
        amount_wei: U256,
    ) -> Result<TransactionReceipt> {
        let stream = self.stream(chain, id).await?;
        let wei = if stream.token.is_zero() { amount_wei } else { U256::ZERO };
        let call = abi::StreamPayment::topUpCall { streamId: id, amount: amount_wei };
        chain.send(stream.sender, self.address, &call, wei).await
    }

    /// Pays out what its recipient has earned, as the recipient.
    ///
    /// # Errors
    /// When the contract refuses, for instance since there is nothing.
    pub async fn withdraw(
        &self,
        chain: &Anvil,
        recipient: Address,
        id: U256,
    ) -> Result<TransactionReceipt> {
        let call = abi::StreamPayment::withdrawCall { streamId: id };
        chain.send(recipient, self.address, &call, U256::ZERO).await
    }

    /// Ends a stream, as its sender or recipient.
    ///
    /// # Errors
    /// When the contract refuses.
    pub async fn terminate(
        &self,
        chain: &Anvil,
        who: Address,
        id: U256,
    ) -> Result<TransactionReceipt> {
        let call = abi::StreamPayment::terminateCall { streamId: id };
        chain.send(who, self.address, &call, U256::ZERO).await
    }

    /// Halts a stream, as the oracle.
    ///
    /// # Errors
    /// When the contract refuses.
    pub async fn halt(&self, chain: &Anvil, id: U256) -> Result<TransactionReceipt> {
        let call = abi::StreamPayment::haltStreamCall { streamId: id };
        chain.send(self.oracle, self.address, &call, U256::ZERO).await
    }

    /// What the contract has in its books of a stream; zeros for one that never was.
    ///
    /// # Errors
    /// When the chain does not answer.
    pub async fn stream(
        &self,
        chain: &Anvil,
        id: U256,
    ) -> Result<abi::StreamPayment::streamsReturn> {
        chain.call(self.address, &abi::StreamPayment::streamsCall { streamId: id }).await
    }

    /// The same as the bytes that the contract answers.
    ///
    /// # Errors
    /// When the chain does not answer.
    pub async fn words(&self, chain: &Anvil, id: U256) -> Result<Bytes> {
        let call = abi::StreamPayment::streamsCall { streamId: id }.abi_encode();
        let answer = chain.call_raw(Address::ZERO, self.address, call.into(), U256::ZERO).await?;
        answer.map_err(|error| anyhow::anyhow!("the contract refuses to tell: {error}"))
    }

    /// How much of the token an account has.
    ///
    /// # Errors
    /// When the chain does not answer.
    pub async fn token_balance(&self, chain: &Anvil, owner: Address) -> Result<U256> {
        chain.call(self.token, &abi::MockGLM::balanceOfCall { owner }).await
    }

    /// What the contract told of a kind in a transaction.
    pub fn events<E: SolEvent>(&self, receipt: &TransactionReceipt) -> Vec<E> {
        let ours = receipt.logs().iter().filter(|log| log.address() == self.address);
        ours.filter_map(|log| {
            let log: &Log = &log.inner;
            E::decode_log(log).ok().map(|decoded| decoded.data)
        })
        .collect()
    }
}
