//! The collector against a contract and a chain in memory: what is sent, once, and what the rows say of it.

use alloy::primitives::Bytes;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        collector::{Collector, CollectorParts, Purse, WithdrawError},
        funding::Funding,
        ledger::{StreamState, WithdrawalOutcome},
    },
    *,
};
use crate::chains::{Call, ChainError, Quote, Receipt, RpcError};

/// A chain with the contract on it.
struct Bank {
    contract: Arc<Contract>,
    state: Mutex<Vault>,
}

#[derive(Default)]
struct Vault {
    /// What was mined, in order.
    mined: Vec<String>,
    /// Receipts of calls with keys that nobody has forgotten; absent where it is not mined yet.
    under_way: BTreeMap<String, Option<Receipt>>,
    gas_price_wei: u128,
    /// Nothing is mined.
    hangs: bool,
    /// Nobody answers.
    is_down: bool,
    /// Payers get nothing back.
    rejects: bool,
    /// Calls are mined and fail, although nobody said so before.
    lies: bool,
}

impl Bank {
    fn set(&self, change: impl FnOnce(&mut Vault)) {
        change(&mut self.state.lock().unwrap());
    }

    fn mined(&self) -> Vec<String> {
        self.state.lock().unwrap().mined.clone()
    }

    fn keys(&self) -> usize {
        self.state.lock().unwrap().under_way.len()
    }

    fn refused(reason: &str) -> ChainError {
        let message = format!("execution reverted: {reason}");
        ChainError::Refused(RpcError { code: 3, message, data: None })
    }

    fn away() -> ChainError {
        ChainError::Unreachable { chain: "payments".into(), reasons: "down".into() }
    }

    fn mine(&self, vault: &mut Vault, call: &Call) -> Receipt {
        assert_eq!((call.to, call.value_wei), (CONTRACT, U256::ZERO));
        let text = String::from_utf8(call.data.to_vec()).unwrap();
        let (what, reference) = text.split_once(' ').unwrap();
        let mut amount = U256::ZERO;
        if !vault.lies {
            self.contract.set(|state| {
                let payment = state.payments.get_mut(reference).unwrap();
                amount = Funding::at(payment, state.time).withdrawable_wei;
                match what {
                    "collect" => payment.withdrawn_wei += amount,
                    _ => payment.standing = Standing::Closed,
                }
            });
        }
        vault.mined.push(text.clone());
        let log = json!({ "address": CONTRACT, "topics": [], "data":
            Bytes::from(format!("{reference} {amount}").into_bytes()) });
        serde_json::from_value(json!({
            "transactionHash": B256::with_last_byte(u8::try_from(vault.mined.len()).unwrap()),
            "blockNumber": "0x1", "status": if vault.lies { "0x0" } else { "0x1" },
            "gasUsed": "0xc350", "effectiveGasPrice": U256::from(vault.gas_price_wei),
            "logs": if vault.lies { json!([]) } else { json!([log]) },
        }))
        .unwrap()
    }
}

#[async_trait]
impl Purse for Bank {
    async fn quote(&self, _: &str, call: &Call) -> Result<Quote, ChainError> {
        let vault = self.state.lock().unwrap();
        if vault.is_down {
            return Err(Self::away());
        }
        if vault.rejects && call.data.starts_with(b"close") {
            return Err(Self::refused("eth refund failed"));
        }
        Ok(Quote { gas: 50_000, price_wei: vault.gas_price_wei })
    }

    async fn send(&self, _: &str, call: Call, _: Duration) -> Result<Receipt, ChainError> {
        let mut vault = self.state.lock().unwrap();
        let key = call.key.clone().unwrap();
        if let Some(Some(receipt)) = vault.under_way.get(&key) {
            return Ok(receipt.clone());
        }
        if vault.is_down {
            return Err(Self::away());
        }
        if vault.hangs {
            vault.under_way.insert(key, None);
            let (chain, waited) = ("payments".into(), Duration::from_secs(120));
            return Err(ChainError::NotMined { chain, hash: B256::ZERO, waited, lately: None });
        }
        let receipt = self.mine(&mut vault, &call);
        vault.under_way.insert(key, Some(receipt.clone()));
        Ok(receipt)
    }

    async fn has_under_way(&self, _: &str, key: &str) -> Result<bool, ChainError> {
        Ok(self.state.lock().unwrap().under_way.contains_key(key))
    }

    async fn forget(&self, _: &str, key: &str) {
        self.state.lock().unwrap().under_way.remove(key);
    }
}

struct Collecting {
    base: Fixture,
    bank: Arc<Bank>,
    rules: LiveRules,
    collector: Collector,
    prices: watch::Sender<Prices>,
}

impl Collecting {
    /// Withdrawals are enabled, without a pause between them.
    async fn new() -> Collecting {
        let base = Fixture::new().await;
        let bank = Arc::new(Bank {
            contract: Arc::clone(&base.contract),
            state: Mutex::new(Vault { gas_price_wei: 1, ..Vault::default() }),
        });
        let mut rules = base.rules;
        rules.withdrawals.enabled = true;
        rules.withdrawals.interval = Duration::ZERO;
        let rules = LiveRules::new(rules);
        let zero = MonthlyPrices {
            per_core: Decimal::ZERO,
            per_gb_ram: Decimal::ZERO,
            per_gb_storage: Decimal::ZERO,
        };
        let prices = watch::Sender::new(Prices::new(zero, None));
        let collector = collector(&base, &bank, &rules, &prices);
        Collecting { base, bank, rules, collector, prices }
    }

    /// A machine whose stream has run for so long, and was looked at then.
    async fn rent(&mut self, reference: u64, seconds: u64) -> String {
        self.base.open(reference, 4 * 3600);
        let vm = self.base.rent(reference).await.unwrap();
        self.base.contract.pass(seconds);
        self.base.round().await;
        vm
    }

    async fn remove(&self, vm: &str) {
        self.base.computer.0.lock().unwrap().remove(vm);
        self.base.store.remove(vm).await.unwrap();
    }

    /// The provider starts anew.
    fn restart(&mut self) {
        self.collector = collector(&self.base, &self.bank, &self.rules, &self.prices);
    }

    async fn round(&self) {
        self.collector.round().await.unwrap();
    }

    fn disable(&self) {
        let change = RulesChange { withdraw_enabled: Some(false), ..RulesChange::default() };
        self.rules.change(&change).unwrap();
    }

    async fn payouts(&self) -> Vec<(PayoutKind, PayoutState, Option<U256>)> {
        let payouts = self.base.store.payouts().await.unwrap();
        payouts.into_iter().map(|one| (one.kind, one.state, one.amount_wei)).collect()
    }

    async fn state(&self) -> StreamState {
        self.collector.ledger().await.unwrap().streams[0].state
    }

    fn key() -> StreamKey {
        StreamKey { contract: CONTRACT, reference: "7".into() }
    }
}

fn collector(
    base: &Fixture,
    bank: &Arc<Bank>,
    rules: &LiveRules,
    prices: &watch::Sender<Prices>,
) -> Collector {
    let verifiers = Verifiers::new(Some("a-contract".into()));
    verifiers.install(Arc::<Contract>::clone(&base.contract));
    Collector::new(CollectorParts {
        store: base.store.clone(),
        verifiers,
        purse: Arc::<Bank>::clone(bank),
        rules: rules.watch(),
        prices: prices.subscribe(),
        glm: Some(TOKEN),
    })
}

fn earned(seconds: u64) -> Option<U256> {
    Some(U256::from(RATE) * U256::from(seconds))
}

use PayoutKind::{Terminate, Withdraw};
use PayoutState::{Failed, Mined, Planned};

#[tokio::test]
async fn what_has_run_up_is_collected_to_the_wei_and_not_twice() {
    let mut it = Collecting::new().await;
    it.rent(7, 600).await;
    it.round().await;
    it.round().await;
    assert_eq!(it.payouts().await, [(Withdraw, Mined, earned(600))]);
    assert_eq!(it.bank.mined(), ["collect 7"]);
    assert_eq!(it.bank.keys(), 0, "what is written down is not kept elsewhere");
    let ledger = it.collector.ledger().await.unwrap();
    assert_eq!(ledger.earnings[0].withdrawn.wei, earned(600).unwrap().to_string());
    assert_eq!(ledger.earnings[0].gas_wei, "50000");
    assert_eq!(it.state().await, StreamState::Running);
}

#[tokio::test]
async fn without_the_operators_wish_nothing_is_collected_while_a_machine_is_there() {
    let mut it = Collecting::new().await;
    it.disable();
    let vm = it.rent(7, 600).await;
    it.round().await;
    assert!(it.payouts().await.is_empty());
    // Once it is gone, its stream is ended, and the requestor has the rest back.
    it.remove(&vm).await;
    it.round().await;
    assert_eq!(it.payouts().await, [(Terminate, Mined, earned(600))]);
    assert_eq!(it.state().await, StreamState::Settled);
    it.round().await;
    assert_eq!(it.bank.mined(), ["close 7"]);
}

#[tokio::test]
async fn a_stream_that_cannot_be_ended_is_collected_until_nothing_is_owed() {
    let mut it = Collecting::new().await;
    it.bank.set(|vault| vault.rejects = true);
    let vm = it.rent(7, 600).await;
    it.remove(&vm).await;
    it.round().await;
    assert_eq!(it.payouts().await, [(Terminate, Failed, None), (Withdraw, Mined, earned(600))]);
    assert_eq!(it.state().await, StreamState::Owed);
    // It is not tried to end it again.
    it.base.contract.pass(4 * 3600);
    it.restart();
    it.round().await;
    assert_eq!(it.payouts().await[2..], [(Withdraw, Mined, earned(4 * 3600 - 600))]);
    assert_eq!(it.state().await, StreamState::Settled);
    assert_eq!(it.bank.mined(), ["collect 7", "collect 7"]);
}

#[tokio::test]
async fn one_that_hangs_is_waited_for_across_a_restart_and_never_doubled() {
    let mut it = Collecting::new().await;
    it.bank.set(|vault| vault.hangs = true);
    it.rent(7, 600).await;
    it.round().await;
    assert_eq!(it.payouts().await, [(Withdraw, Planned, None)]);
    it.restart();
    it.round().await;
    let by_hand = it.collector.withdraw(Collecting::key()).await.unwrap();
    assert_eq!(by_hand.outcome, WithdrawalOutcome::Pending);
    it.bank.set(|vault| vault.hangs = false);
    it.base.contract.pass(60);
    it.restart();
    it.round().await;
    assert_eq!(it.payouts().await, [(Withdraw, Mined, earned(660))]);
    assert_eq!(it.bank.mined(), ["collect 7"]);
}

#[tokio::test]
async fn a_crash_before_anything_was_signed_or_before_the_row_is_written_costs_no_second_transaction()
 {
    let mut it = Collecting::new().await;
    it.rent(7, 600).await;
    let plan = |expected_wei| NewPayout {
        key: Collecting::key(),
        chain: "payments".into(),
        kind: Withdraw,
        planned_at: model::now(),
        expected_wei,
    };
    it.base.store.plan_payout(plan(U256::ONE)).await.unwrap();
    it.round().await;
    assert_eq!(it.payouts().await, [(Withdraw, Mined, earned(600))]);

    it.base.contract.pass(60);
    let row = it.base.store.plan_payout(plan(U256::ONE)).await.unwrap();
    let call = Call {
        to: CONTRACT,
        data: Bytes::from_static(b"collect 7"),
        value_wei: U256::ZERO,
        gas_limit: Some(100_000),
        key: Some(format!("payout-{}", row.id)),
    };
    it.bank.send("payments", call, Duration::ZERO).await.unwrap();
    it.restart();
    it.round().await;
    assert_eq!(it.payouts().await[1..], [(Withdraw, Mined, earned(60))]);
    assert_eq!(it.bank.mined(), ["collect 7", "collect 7"]);
    assert_eq!(it.bank.keys(), 0);
}

#[tokio::test]
async fn what_costs_more_than_it_brings_is_collected_by_hand_alone() {
    let mut it = Collecting::new().await;
    it.rent(7, 600).await;
    it.bank.set(|vault| vault.gas_price_wei = 10_u128.pow(15));
    it.round().await;
    assert!(it.payouts().await.is_empty() && it.bank.mined().is_empty());
    let done = it.collector.withdraw(Collecting::key()).await.unwrap();
    assert_eq!(done.outcome, WithdrawalOutcome::Collected);
    assert_eq!(done.amount.unwrap().wei, earned(600).unwrap().to_string());
    let again = it.collector.withdraw(Collecting::key()).await.unwrap();
    assert_eq!(again.outcome, WithdrawalOutcome::Nothing);
}

#[tokio::test]
async fn nothing_is_sent_for_a_token_that_is_not_accepted_or_a_contract_that_is_another() {
    let mut it = Collecting::new().await;
    it.rent(7, 600).await;
    it.base.contract.change("7", |payment| payment.token = Address::repeat_byte(0x66));
    it.round().await;
    let refused = it.collector.withdraw(Collecting::key()).await.unwrap();
    assert_eq!(refused.outcome, WithdrawalOutcome::Failed);
    assert!(refused.reason.unwrap().contains("0x6666"), "the token is named");
    assert!(it.payouts().await.is_empty() && it.bank.mined().is_empty());

    let elsewhere = StreamKey { contract: Address::repeat_byte(0x11), ..Collecting::key() };
    let unknown = it.collector.withdraw(elsewhere).await;
    assert!(matches!(unknown, Err(WithdrawError::Unknown { .. })));
}

#[tokio::test]
async fn what_nobody_answers_for_is_tried_again_and_is_no_row() {
    let mut it = Collecting::new().await;
    it.rent(7, 600).await;
    it.bank.set(|vault| vault.is_down = true);
    it.round().await;
    assert!(it.payouts().await.is_empty());
    it.bank.set(|vault| vault.is_down = false);
    it.round().await;
    assert!(it.payouts().await.is_empty(), "it is left alone for a while");
    it.restart();
    it.round().await;
    assert_eq!(it.payouts().await, [(Withdraw, Mined, earned(600))]);
}

#[tokio::test]
async fn what_was_mined_and_did_nothing_is_written_down_with_what_it_cost() {
    let mut it = Collecting::new().await;
    it.rent(7, 600).await;
    it.bank.set(|vault| vault.lies = true);
    it.round().await;
    it.round().await;
    let rows = it.base.store.payouts().await.unwrap();
    assert_eq!(rows.len(), 1, "it is not tried again at once");
    assert_eq!((rows[0].state, rows[0].gas_wei), (Failed, Some(U256::from(50_000))));
    assert!(rows[0].error.as_deref().unwrap().contains("refused"), "{rows:?}");
    assert_eq!(it.bank.keys(), 0);
}

#[tokio::test]
async fn a_machine_that_is_gone_wakes_the_task_which_ends_when_it_is_told_to() {
    let mut it = Collecting::new().await;
    it.disable();
    let change = RulesChange { withdraw_interval_seconds: Some(3600), ..RulesChange::default() };
    it.rules.change(&change).unwrap();
    let vm = it.rent(7, 600).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(it.collector.clone().run(stop.clone()));
    it.remove(&vm).await;
    it.collector.settle_soon();
    while it.state().await != StreamState::Settled {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    running.await.unwrap();
    assert_eq!(it.bank.mined(), ["close 7"]);
}
