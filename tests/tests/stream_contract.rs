//! The contract that payments are tested with, held against answers of the one that providers are paid by, which were
//! recorded on the same kind of chain: `tests/vectors/stream_states.json`.
//!
//! Every recorded state can be reached, and is: all 42, at the same times, from the same accounts, and with contracts at the same
//! addresses, so that the answers are equal in every bit. So are the 23 refusals, with what nodes say of them.

use std::collections::BTreeSet;

use alloy::{
    primitives::{Address, Bytes, U256, address},
    rpc::types::TransactionReceipt,
};
use alloy_sol_types::{SolCall, SolValue};
use anyhow::{Context, Result, ensure};
use golem_provider_tests::{
    Anvil, StreamContract,
    contracts::{
        GAS,
        abi::{
            EvilToken, GrumpySender, MockGLM,
            StreamPayment::{
                createStreamCall, haltStreamCall, nextStreamIdCall, oracleCall, streamsCall,
                terminateCall, topUpCall, withdrawCall,
            },
        },
        account,
    },
};
use serde_json::{Value, json};

const DEPLOYER: usize = 0;
const REQUESTOR: usize = 1;
const PROVIDER: usize = 2;
const ORACLE: usize = 3;

/// Everything was recorded after this, in seconds since 1970.
const EPOCH: u64 = 1_700_000_000;
/// Of the recorded streams, if nothing else is said.
const RATE: u128 = 1_000_000_000_000;
const HOUR: u128 = 3600 * RATE;
/// The coin of the chain instead of a token.
const COIN: Address = Address::ZERO;

/// Moods of the contracts that are out for trouble.
const FROZEN: u8 = 1;
const BURNS_GAS: u8 = 1;
const TOKEN_BURNS_GAS: u8 = 2;
const ANSWERS_FALSE: u8 = 3;

/// The recorded story, told again.
struct Replay {
    chain: Anvil,
    streams: StreamContract,
    evil: Address,
    fee: Address,
    silent: Address,
    grumpy: Address,
    recorded: Value,
    /// Of the recorded states, how many have been compared; they come in order.
    states: usize,
    refusals: BTreeSet<String>,
}

impl Replay {
    /// All contracts where they were, and money where it was.
    async fn start() -> Result<Replay> {
        let recorded: Value = serde_json::from_str(include_str!("../vectors/stream_states.json"))?;
        let chain = Anvil::start_with(0, &["--timestamp", &EPOCH.to_string()]).await?;
        let from = account(DEPLOYER);
        let streams = StreamContract::deploy(&chain).await?;
        let evil = chain.deploy(from, "EvilToken", &[]).await?;
        let fee = chain.deploy(from, "FeeToken", &[]).await?;
        let silent = chain.deploy(from, "NoReturnToken", &[]).await?;
        let grumpy = chain.deploy(from, "GrumpySender", &[]).await?;
        for (name, ours) in [
            ("StreamPayment", streams.address),
            ("MockGLM", streams.token),
            ("EvilToken", evil),
            ("FeeToken", fee),
            ("requestor", account(REQUESTOR)),
            ("provider", account(PROVIDER)),
            ("oracle", account(ORACLE)),
        ] {
            assert_eq!(recorded["addresses"][name], json!(ours.to_checksum(None)), "{name}");
        }
        let plenty = U256::from(10_u128.pow(20));
        streams.fund(&chain, account(REQUESTOR), plenty).await?;
        StreamContract { token: fee, ..streams }.fund(&chain, account(REQUESTOR), plenty).await?;
        ensure!(chain.block_time().await? < EPOCH + 100, "this machine is too slow for the story");
        chain.mine_at(EPOCH + 112).await?;
        Ok(Replay {
            chain,
            streams,
            evil,
            fee,
            silent,
            grumpy,
            recorded,
            states: 0,
            refusals: BTreeSet::new(),
        })
    }

    /// A transaction with the contract that is mined so many seconds after the epoch.
    async fn at<C: SolCall>(
        &self,
        time: u64,
        from: usize,
        call: &C,
        wei: u128,
    ) -> Result<TransactionReceipt> {
        self.at_with(time, from, self.streams.address, call, wei).await
    }

    async fn at_with<C: SolCall>(
        &self,
        time: u64,
        from: usize,
        to: Address,
        call: &C,
        wei: u128,
    ) -> Result<TransactionReceipt> {
        self.chain.next_block_at(EPOCH + time).await?;
        self.chain.send(account(from), to, call, U256::from(wei)).await
    }

    /// The requestor opens a stream of coin for an hour.
    async fn opens(&self, time: u64) -> Result<TransactionReceipt> {
        self.at(time, REQUESTOR, &create(COIN, HOUR, RATE), HOUR).await
    }

    async fn passes(&self, time: u64) -> Result<()> {
        self.chain.mine_at(EPOCH + time).await
    }

    /// The next recorded state has this name, and is ours.
    async fn is(&mut self, name: &str) -> Result<()> {
        let case = &self.recorded["cases"][self.states];
        assert_eq!(case["case"], name, "state {}", self.states);
        assert_eq!(json!(self.chain.block_time().await?), case["now"], "{name}");
        let id: U256 = case["id"].as_str().context("a state without an id")?.parse()?;
        let words = self.streams.words(&self.chain, id).await?;
        assert_eq!(json!(words), case["raw"], "{name}");
        assert_eq!(words.len(), 288);
        let call = withdrawCall { streamId: id }.abi_encode();
        let (provider, to) = (account(PROVIDER), self.streams.address);
        let withdrawing = self.chain.call_raw(provider, to, call.into(), U256::ZERO).await?;
        let withdrawing = match withdrawing {
            Ok(_) => "ok".to_owned(),
            Err(error) => format!("revert: {}", error["message"].as_str().unwrap_or_default()),
        };
        assert_eq!(case["withdraw_by_provider"], withdrawing, "{name}");
        self.states += 1;
        Ok(())
    }

    /// The contract refuses as it did.
    async fn refuses<C: SolCall>(
        &mut self,
        name: &str,
        from: usize,
        call: &C,
        wei: u128,
    ) -> Result<()> {
        let recorded = self.recorded["reverts"].as_array().context("no refusals")?;
        let recorded =
            recorded.iter().find(|refusal| refusal["case"] == name).context("unknown")?;
        let data = Bytes::from(call.abi_encode());
        let (from, wei) = (account(from), U256::from(wei));
        let answer = self.chain.call_raw(from, self.streams.address, data, wei).await?;
        assert_eq!(answer, Err(recorded["jsonrpc_error"].clone()), "{name}");
        ensure!(self.refusals.insert(name.to_owned()), "{name} twice");
        Ok(())
    }

    /// What a transaction told is what it told then: who, topics, data.
    fn told(&self, name: &str, receipt: &TransactionReceipt) -> Result<()> {
        let told = |receipt: &Value| -> Result<Vec<Value>> {
            let logs = receipt["logs"].as_array().context("no logs")?.iter();
            let address = |log: &Value| log["address"].as_str().unwrap_or_default().to_lowercase();
            Ok(logs.map(|log| json!([address(log), log["topics"], log["data"]])).collect())
        };
        assert_eq!(told(&serde_json::to_value(receipt)?)?, told(&self.recorded[name])?, "{name}");
        Ok(())
    }
}

fn create(token: Address, deposit: impl TryInto<U256>, rate: u128) -> createStreamCall {
    let deposit = deposit.try_into().unwrap_or_default();
    createStreamCall { token, recipient: account(PROVIDER), deposit, ratePerSecond: rate }
}

fn withdraw(id: u64) -> withdrawCall {
    withdrawCall { streamId: U256::from(id) }
}

fn terminate(id: u64) -> terminateCall {
    terminateCall { streamId: U256::from(id) }
}

fn halt(id: u64) -> haltStreamCall {
    haltStreamCall { streamId: U256::from(id) }
}

fn top_up(id: u64, amount: u128) -> topUpCall {
    topUpCall { streamId: U256::from(id), amount: U256::from(amount) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_answers_every_recorded_state_word_for_word() -> Result<()> {
    let mut it = Replay::start().await?;
    for name in ["unknown id 0", "unknown id 1 (before any stream)", "unknown id 2^256-1"] {
        it.is(name).await?;
    }
    it.story_of_one_stream().await?;
    it.ends().await?;
    it.remainders_and_dust().await?;
    it.tokens().await?;
    it.hostile_tokens().await?;
    it.difficult_senders().await?;
    it.other_answers().await?;

    assert_eq!(Some(it.states), it.recorded["cases"].as_array().map(Vec::len));
    assert_eq!(Some(it.refusals.len()), it.recorded["reverts"].as_array().map(Vec::len));
    Ok(())
}

impl Replay {
    /// Opened, drawn from, run out, and topped up too late.
    async fn story_of_one_stream(&mut self) -> Result<()> {
        let opened = self.opens(122).await?;
        self.told("createStream_receipt", &opened)?;
        self.is("ETH fresh (same block)").await?;
        self.passes(722).await?;
        self.is("ETH mid (600/3600 s)").await?;
        self.refuses("withdraw by stranger", DEPLOYER, &withdraw(1), 0).await?;
        self.refuses("withdraw by sender", REQUESTOR, &withdraw(1), 0).await?;
        self.refuses("haltStream by provider (not oracle)", PROVIDER, &halt(1), 0).await?;
        self.refuses("terminate by stranger", DEPLOYER, &terminate(1), 0).await?;
        self.refuses("topUp by stranger", DEPLOYER, &top_up(1, RATE), RATE).await?;
        let little = RATE - 1;
        let refused = "topUp amount<rate (delta=0)";
        self.refuses(refused, REQUESTOR, &top_up(1, little), little).await?;
        self.refuses("topUp value != amount", REQUESTOR, &top_up(1, RATE), 1).await?;
        let withdrawn = self.at(723, PROVIDER, &withdraw(1), 0).await?;
        self.told("withdraw_receipt", &withdrawn)?;
        self.is("ETH mid after withdraw").await?;
        self.passes(3722).await?;
        self.is("ETH at stopTime exactly").await?;
        self.passes(5122).await?;
        self.is("ETH after stopTime, not withdrawn").await?;
        self.at(5123, PROVIDER, &withdraw(1), 0).await?;
        self.is("ETH after stopTime, all withdrawn").await?;
        self.refuses("withdraw again (nothing left)", PROVIDER, &withdraw(1), 0).await?;
        self.at(6122, REQUESTOR, &top_up(1, 600 * RATE), 600 * RATE).await?;
        self.is("ETH topUp 600 s, 2400 s AFTER expiry (same block)").await?;
        self.passes(6222).await?;
        self.is("  ... 100 s later").await?;
        self.at(6223, PROVIDER, &withdraw(1), 0).await?;
        self.is("  ... after withdraw").await?;
        self.passes(6422).await?;
        self.is("  ... 200 s later, stopTime still ahead").await?;
        self.refuses("  ... withdraw then", PROVIDER, &withdraw(1), 0).await
    }

    /// Terminated and halted, at all times.
    async fn ends(&mut self) -> Result<()> {
        self.opens(6432).await?;
        let terminated = self.at(6532, REQUESTOR, &terminate(2), 0).await?;
        self.told("terminate_receipt", &terminated)?;
        self.is("ETH terminated by sender at 100 s").await?;
        self.refuses("terminate twice", REQUESTOR, &terminate(2), 0).await?;
        self.refuses("topUp after terminate", REQUESTOR, &top_up(2, RATE), RATE).await?;
        self.refuses("withdraw after terminate", PROVIDER, &withdraw(2), 0).await?;
        self.refuses("haltStream after terminate", ORACLE, &halt(2), 0).await?;
        self.opens(6542).await?;
        self.at(6642, PROVIDER, &withdraw(3), 0).await?;
        self.at(6742, PROVIDER, &terminate(3), 0).await?;
        self.is("ETH terminated by provider at 200 s (100 s withdrawn)").await?;
        self.opens(6752).await?;
        self.at(10752, REQUESTOR, &terminate(4), 0).await?;
        self.is("ETH terminated by sender after stopTime").await?;
        // Stream 5 is not looked at.
        self.opens(10762).await?;
        self.opens(10772).await?;
        let halted = self.at(11072, ORACLE, &halt(6), 0).await?;
        self.told("halt_receipt", &halted)?;
        self.is("ETH halted at 300 s").await?;
        self.refuses("topUp while halted", REQUESTOR, &top_up(6, RATE), RATE).await?;
        self.passes(11772).await?;
        self.is("ETH halted at 300 s, seen at 1000 s").await?;
        self.at(11773, PROVIDER, &withdraw(6), 0).await?;
        self.is("ETH halted, vested part withdrawn").await?;
        self.at(11872, REQUESTOR, &terminate(6), 0).await?;
        self.is("ETH halted then terminated").await?;
        self.opens(11882).await?;
        self.at(15882, ORACLE, &halt(7), 0).await?;
        self.is("ETH halted after stopTime").await
    }

    async fn remainders_and_dust(&mut self) -> Result<()> {
        // Nor is stream 8.
        self.opens(15892).await?;
        let deposit = 10 * RATE + 7;
        self.at(15902, REQUESTOR, &create(COIN, deposit, RATE), deposit).await?;
        self.is("ETH deposit with remainder (10*rate+7)").await?;
        let more = 5 * RATE + RATE - 1;
        self.at(15905, REQUESTOR, &top_up(9, more), more).await?;
        self.is("ETH topUp before expiry (5*rate + rate-1)").await?;
        self.passes(16002).await?;
        self.is("  ... after expiry").await?;
        self.at(16012, REQUESTOR, &create(COIN, 3600_u128, 1), 3600).await?;
        self.is("ETH rate=1 wei/s for 1 h (dust)").await?;
        self.passes(20012).await?;
        self.is("ETH dust, expired").await?;

        let little = RATE - 1;
        let short = create(COIN, little, RATE);
        self.refuses("createStream duration=0 (deposit<rate)", REQUESTOR, &short, little).await?;
        self.refuses("createStream rate=0", REQUESTOR, &create(COIN, RATE, 0), RATE).await?;
        self.refuses("createStream deposit=0", REQUESTOR, &create(COIN, 0_u128, RATE), 0).await?;
        let nobody = createStreamCall { recipient: Address::ZERO, ..create(COIN, HOUR, RATE) };
        self.refuses("createStream recipient=0", REQUESTOR, &nobody, HOUR).await?;
        let whole = create(COIN, HOUR, RATE);
        self.refuses("createStream value!=deposit", REQUESTOR, &whole, HOUR - 1).await
    }

    async fn tokens(&mut self) -> Result<()> {
        let token = self.streams.token;
        let opened = self.at(20022, REQUESTOR, &create(token, HOUR, RATE), 0).await?;
        self.told("createStream_erc20_receipt", &opened)?;
        self.is("ERC20 fresh").await?;
        self.passes(20622).await?;
        self.is("ERC20 mid").await?;
        self.at(20623, PROVIDER, &withdraw(11), 0).await?;
        self.is("ERC20 mid after withdraw").await?;
        self.at(20722, REQUESTOR, &top_up(11, HOUR), 0).await?;
        self.is("ERC20 topUp 1 h").await?;
        let provider = account(PROVIDER);
        let before = self.streams.token_balance(&self.chain, provider).await?;
        assert_eq!(before, U256::from(601 * RATE));
        self.at(20822, REQUESTOR, &terminate(11), 0).await?;
        self.is("ERC20 terminated").await?;
        let after = self.streams.token_balance(&self.chain, provider).await?;
        assert_eq!(after, U256::from(800 * RATE));
        self.at(20832, REQUESTOR, &create(token, HOUR, RATE), 5).await?;
        self.is("ERC20 with stray msg.value (ETH is stuck)").await?;
        self.at(20837, PROVIDER, &create(COIN, HOUR, RATE), HOUR).await?;
        self.is("stream from provider to itself").await?;

        let silent = create(self.silent, HOUR, RATE);
        self.refuses("no-return token createStream", REQUESTOR, &silent, 0).await?;
        let nobody = create(account(ORACLE), HOUR, RATE);
        self.refuses("token = EOA createStream", REQUESTOR, &nobody, 0).await
    }

    async fn hostile_tokens(&mut self) -> Result<()> {
        let junk = |deposit: U256, rate: u128| create(self.evil, deposit, rate);
        let far = u128::MAX - u128::from(EPOCH + 20847);
        let over = junk(U256::from(u128::MAX), 1);
        let cut = junk(U256::from(u128::MAX) + U256::from(61), 1);
        let most = junk(U256::MAX, u128::MAX);
        let none = junk(U256::from(1) << 255, 1 << 127);
        let plain = junk(U256::from(HOUR), RATE);
        let far = junk(U256::from(far), 1);
        let overflow = "createStream start+duration overflows uint128";
        self.refuses(overflow, REQUESTOR, &over, 0).await?;
        self.at(20847, REQUESTOR, &far, 0).await?;
        self.is("token junk: stopTime = 2^128-1").await?;
        self.at(20857, REQUESTOR, &cut, 0).await?;
        self.is("token junk: duration cast to uint128 truncates (2^128+60 -> 60 s)").await?;
        self.at(20867, REQUESTOR, &most, 0).await?;
        self.is("token junk: max deposit / max rate").await?;
        self.at(20877, REQUESTOR, &none, 0).await?;
        self.is("token junk: duration 2^128 -> 0").await?;
        self.passes(20887).await?;
        self.is("  ... later").await?;

        self.at(20897, REQUESTOR, &plain, 0).await?;
        let mood = |to| EvilToken::setMoodCall { to };
        self.at_with(20900, REQUESTOR, self.evil, &mood(FROZEN), 0).await?;
        self.passes(20948).await?;
        self.is("token junk: transfer reverts -> withdraw bricked").await?;

        // One that burns gas takes all of what a transaction may use.
        self.at_with(20950, REQUESTOR, self.evil, &mood(TOKEN_BURNS_GAS), 0).await?;
        let (provider, contract) = (account(PROVIDER), self.streams.address);
        let burned = self.chain.try_send(provider, contract, &withdraw(18), U256::ZERO).await?;
        ensure!(!burned.status() && burned.gas_used > GAS - 50_000, "{burned:?}");
        let call = json!({
            "from": provider, "to": contract, "data": Bytes::from(withdraw(18).abi_encode())
        });
        let estimate = self.chain.ask("eth_estimateGas", json!([call])).await?;
        let recorded = &self.recorded["notes"][1]["estimateGas on gas-burning token"]["error"];
        assert_eq!(estimate.as_ref().err(), Some(recorded));
        // One that merely says no takes nothing, and no money moves.
        self.at_with(21000, REQUESTOR, self.evil, &mood(ANSWERS_FALSE), 0).await?;
        let refused = self.chain.try_send(provider, contract, &withdraw(18), U256::ZERO).await?;
        ensure!(!refused.status() && refused.gas_used < 100_000, "{refused:?}");

        let whole = 10_u128.pow(18);
        let with_fee = create(self.fee, whole, 100 * RATE);
        self.at(21010, REQUESTOR, &with_fee, 0).await?;
        self.is("fee-on-transfer token: books 1e18").await?;
        let held = MockGLM::balanceOfCall { owner: contract };
        assert_eq!(self.chain.call(self.fee, &held).await?, U256::from(whole / 2));
        self.passes(30010).await?;
        self.is("  ... all vested").await
    }

    async fn difficult_senders(&mut self) -> Result<()> {
        let open = GrumpySender::openCall {
            payments: self.streams.address,
            recipient: account(PROVIDER),
            ratePerSecond: RATE,
        };
        self.at_with(30015, REQUESTOR, self.grumpy, &open, HOUR).await?;
        self.passes(30116).await?;
        self.is("ETH from contract that rejects refunds").await?;
        let rejected = "terminate by provider, sender rejects refund";
        self.refuses(rejected, PROVIDER, &terminate(20), 0).await?;

        // One that burns gas costs the provider all of it, and what was earned can be had nevertheless.
        let mood = GrumpySender::setMoodCall { to: BURNS_GAS };
        self.at_with(30120, REQUESTOR, self.grumpy, &mood, 0).await?;
        let (provider, contract) = (account(PROVIDER), self.streams.address);
        let burned = self.chain.try_send(provider, contract, &terminate(20), U256::ZERO).await?;
        ensure!(!burned.status() && burned.gas_used > GAS - 50_000, "{burned:?}");
        self.at(30200, PROVIDER, &withdraw(20), 0).await.map(drop)
    }

    /// What is no payment contract answers something else.
    async fn other_answers(&mut self) -> Result<()> {
        let ask = Bytes::from(streamsCall { streamId: U256::from(1) }.abi_encode());
        let ask = async |to| self.chain.call_raw(Address::ZERO, to, ask.clone(), U256::ZERO).await;
        let notes = &self.recorded["notes"];
        let nobody = address!("0x00000000000000000000000000000000000000ff");
        assert_eq!(notes[4]["streams(1) on EOA / no code"], json!(ask(nobody).await?.ok()));
        let another = &notes[5]["streams(1) on other contract (MockGLM)"];
        assert_eq!(ask(self.streams.token).await?.as_ref().err(), Some(another));
        let third = &notes[6]["streams(1) on contract with fallback? (GrumpySender)"];
        assert_eq!(ask(self.grumpy).await?.as_ref().err(), Some(third));

        let next = self.chain.call(self.streams.address, &nextStreamIdCall {}).await?;
        assert_eq!(next, U256::from(21));
        let oracle = self.chain.call(self.streams.address, &oracleCall {}).await?;
        assert_eq!(oracle, account(ORACLE));
        assert_eq!(oracle.abi_encode().len(), 32);
        Ok(())
    }
}
