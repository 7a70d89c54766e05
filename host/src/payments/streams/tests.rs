//! The gate and the monitor against a contract and machines in memory: what starts, what stops, what is kept.

mod collecting;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use alloy::primitives::{B256, U256};
use async_trait::async_trait;
use jiff::Timestamp;
use rust_decimal::Decimal;
use tempfile::TempDir;
use uuid::Uuid;

use super::{
    monitor::{Deed, Rounds, SETTLED_BLOCKS},
    *,
};
use crate::{
    payments::pricing::MonthlyPrices,
    plugins::{
        Failure, FailureKind, PaymentVerifier,
        payment_verifier::{
            Changes, Event, Moment, Payment, PaymentCall, Payout, Snapshot, Standing, Terms,
        },
    },
    settings::{StreamMonitorSettings, WithdrawalSettings},
    store::{JobRecord, StoreError, VmRecord},
    vms::model::{Job, JobStatus, Ownership, Phase, Resources, Vm},
};

const CONTRACT: Address = Address::repeat_byte(0xc0);
const TOKEN: Address = Address::repeat_byte(0x70);
const PAYEE: Address = Address::repeat_byte(0xee);
const PAYER: Address = Address::repeat_byte(0xaa);
/// 10 GLM a core and month, 1 a GB of memory: what `SIZE` costs a second.
const RATE: u64 = 4_185_692_541_856;
const SIZE: Amounts = Amounts { cpu_cores: 1, memory_gb: 1, storage_gb: 10 };
const START: u64 = 1_700_000_000;

/// A contract that says what the test wants.
struct Contract(Mutex<State>, AtomicUsize);

struct State {
    block: u64,
    time: u64,
    payments: BTreeMap<String, Payment>,
    failure: Option<Failure>,
}

impl Contract {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap());
    }

    /// Time and blocks go on.
    fn pass(&self, seconds: u64) {
        self.set(|state| {
            state.time += seconds;
            state.block += 1;
        });
    }

    fn change(&self, reference: &str, change: impl FnOnce(&mut Payment)) {
        self.set(|state| change(state.payments.get_mut(reference).unwrap()));
    }
}

#[async_trait]
impl PaymentVerifier for Contract {
    fn name(&self) -> &str {
        "a-contract"
    }

    async fn terms(&self) -> Result<Terms, Failure> {
        Ok(Terms { chain: "payments".into(), contract: CONTRACT, tokens: vec![TOKEN] })
    }

    async fn check_reference(&self, reference: &str) -> Result<String, Failure> {
        match reference.parse::<u64>() {
            Ok(number) => Ok(number.to_string()),
            Err(_) => Err(Failure::new(FailureKind::InvalidArgument, "a stream is a number")),
        }
    }

    async fn read(&self, references: &[String], _: u32) -> Result<Snapshot, Failure> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let state = self.0.lock().unwrap();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let at = Moment { number: state.block, hash: B256::ZERO, time: state.time };
        let payments = references.iter().map(|one| state.payments.get(one).cloned()).collect();
        Ok(Snapshot { at, latest: at, payments })
    }

    async fn changed_since(&self, block: u64) -> Result<Changes, Failure> {
        Ok(Changes { up_to_block: block, references: Vec::new() })
    }

    async fn collect(&self, reference: &str) -> Result<PaymentCall, Failure> {
        Ok(PaymentCall { data: format!("collect {reference}").into_bytes(), gas_limit: 100_000 })
    }

    async fn close(&self, reference: &str) -> Result<PaymentCall, Failure> {
        Ok(PaymentCall { data: format!("close {reference}").into_bytes(), gas_limit: 100_000 })
    }

    async fn payouts(&self, events: &[Event]) -> Result<Vec<Payout>, Failure> {
        let payout = |event: &Event| {
            let text = String::from_utf8(event.data.clone()).unwrap();
            let (reference, amount) = text.split_once(' ').unwrap();
            Payout { reference: reference.to_owned(), amount_wei: amount.parse().unwrap() }
        };
        Ok(events.iter().map(payout).collect())
    }
}

#[derive(Default)]
struct Computer(Mutex<HashMap<String, MachineState>>);

#[async_trait]
impl Machines for Computer {
    fn look(&self, vm_id: &str) -> Option<MachineState> {
        self.0.lock().unwrap().get(vm_id).copied()
    }

    async fn stop(&self, vm_id: &str) -> Result<(), String> {
        self.0.lock().unwrap().insert(vm_id.to_owned(), MachineState::Rests);
        Ok(())
    }

    async fn delete(&self, vm_id: &str) -> Result<(), String> {
        self.0.lock().unwrap().remove(vm_id);
        Ok(())
    }
}

struct Fixture {
    contract: Arc<Contract>,
    computer: Arc<Computer>,
    store: Store,
    rules: PaymentRules,
    streams: Streams,
    rounds: Rounds,
    _directory: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).await.unwrap();
        let state = State { block: 100, time: START, payments: BTreeMap::new(), failure: None };
        let contract = Arc::new(Contract(Mutex::new(state), AtomicUsize::new(0)));
        let rules = PaymentRules {
            monitor: StreamMonitorSettings { enabled: true, interval: Duration::from_secs(60) },
            withdrawals: WithdrawalSettings {
                enabled: false,
                interval: Duration::from_secs(60),
                min_wei: 0,
            },
            min_remaining: Duration::from_secs(3600),
            retention: Duration::from_secs(86_400),
        };
        let streams = streams(&contract, &store, rules);
        Self {
            contract,
            computer: Arc::default(),
            store,
            rules,
            streams,
            rounds: Rounds::default(),
            _directory: directory,
        }
    }

    /// A provider that starts anew on the same database.
    fn restart(&mut self) {
        self.streams = streams(&self.contract, &self.store, self.rules);
        self.rounds = Rounds::default();
    }

    /// A stream that was opened in this moment for so long.
    fn open(&self, reference: u64, seconds: u64) {
        self.contract.set(|state| {
            let payment = Payment {
                standing: Standing::Open,
                token: TOKEN,
                payer: PAYER,
                payee: PAYEE,
                rate_wei_per_second: U256::from(RATE),
                start_time: U256::from(state.time),
                stop_time: U256::from(state.time + seconds),
                deposit_wei: U256::from(RATE) * U256::from(seconds),
                withdrawn_wei: U256::ZERO,
            };
            state.payments.insert(reference.to_string(), payment);
        });
    }

    async fn admit(&self, reference: u64) -> Result<Ticket, GateError> {
        self.streams.admit(Some(&reference.to_string()), SIZE).await
    }

    /// A machine that runs on this stream.
    async fn rent(&self, reference: u64) -> Result<String, StoreError> {
        let ticket = self.admit(reference).await.unwrap();
        self.bind(&format!("vm-{reference}"), ticket).await
    }

    async fn bind(&self, name: &str, ticket: Ticket) -> Result<String, StoreError> {
        let now = Timestamp::now();
        let vm = Vm {
            id: format!("golem-{name}"),
            name: name.to_owned(),
            ownership: Ownership::Payer(ticket.payer()),
            backend: "memory".to_owned(),
            phase: Phase::Creating,
            resources: Resources::new(1, 1, 10).unwrap(),
            image: "24.04".to_owned(),
            ssh_port: Some(u16::try_from(50_000 + self.computer.0.lock().unwrap().len()).unwrap()),
            ip_address: None,
            created_at: now,
            updated_at: now,
            error_message: None,
            progress: None,
        };
        let job = Job {
            id: Uuid::new_v4(),
            vm_name: name.to_owned(),
            ownership: Ownership::Payer(ticket.payer()),
            status: JobStatus::Creating,
            error: None,
            created_at: now,
            updated_at: now,
        };
        let job = JobRecord { job, vm_id: vm.id.clone() };
        let record = VmRecord { vm, ssh_key: None };
        let (record, _) = self.store.admit(record, job, None, Some(ticket)).await?;
        self.computer.0.lock().unwrap().insert(record.vm.id.clone(), MachineState::Runs);
        Ok(record.vm.id)
    }

    /// What the monitor wants done, in words; done at once.
    async fn round(&mut self) -> Vec<String> {
        let computer = Arc::clone(&self.computer);
        let deeds =
            self.streams.0.round(&mut self.rounds, computer.as_ref(), &self.rules).await.unwrap();
        let mut words = Vec::new();
        for (vm_id, deed) in deeds {
            match deed {
                Deed::Stop => {
                    computer.stop(&vm_id).await.unwrap();
                    words.push(format!("stop {vm_id}"));
                }
                Deed::Delete => {
                    computer.delete(&vm_id).await.unwrap();
                    self.store.remove(&vm_id).await.unwrap();
                    words.push(format!("delete {vm_id}"));
                }
            }
        }
        words
    }

    fn state(&self, vm_id: &str) -> PaymentState {
        self.streams.status(vm_id).unwrap().state
    }

    /// The last look was so long ago.
    async fn backdate(&self, by: Duration, change: impl Fn(&mut Stream, Duration)) {
        let mut streams = self.store.streams().await.unwrap();
        for stream in &mut streams {
            change(stream, by);
        }
        self.store.save_streams(streams).await.unwrap();
    }
}

fn streams(contract: &Arc<Contract>, store: &Store, rules: PaymentRules) -> Streams {
    let verifiers = Verifiers::new(Some("a-contract".to_owned()));
    verifiers.install(Arc::clone(contract) as Arc<dyn PaymentVerifier>);
    let monthly = MonthlyPrices {
        per_core: Decimal::from(10),
        per_gb_ram: Decimal::from(1),
        per_gb_storage: Decimal::ZERO,
    };
    let (_, prices) = watch::channel(Prices { usd: monthly, glm: Some(monthly), rate: None });
    let (_, live) = watch::channel(rules);
    let settings = PaymentSettings {
        verifier: None,
        contract: None,
        confirmations: 1,
        min_remaining: rules.min_remaining,
        create_grace: Duration::from_secs(300),
        retention: rules.retention,
        price_memory: Duration::from_secs(900),
        monitor: rules.monitor,
        withdrawals: rules.withdrawals,
    };
    let price_memory = Duration::from_secs(900);
    let store = store.clone();
    let parts = StreamsParts { store, verifiers, payee: PAYEE, prices, price_memory, rules: live };
    Streams::new(&settings, parts)
}

#[tokio::test]
async fn a_machine_is_made_only_on_a_stream_that_pays_for_it_and_one_stream_buys_one() {
    let fixture = Fixture::new().await;
    let refused = async |reference: Option<&str>| {
        fixture.streams.admit(reference, SIZE).await.unwrap_err().to_string()
    };
    let text = refused(None).await;
    assert!(text.contains(&RATE.to_string()) && text.contains("stream_id"), "{text}");
    assert!(refused(Some("seven")).await.contains("a stream is a number"));
    assert!(refused(Some("7")).await.contains("there is no stream of that number"));
    fixture.open(7, 7200);
    fixture.contract.change("7", |payment| payment.rate_wei_per_second -= U256::from(3));
    let text = refused(Some("7")).await;
    assert!(text.contains(&RATE.to_string()) && text.contains(&(RATE - 3).to_string()), "{text}");
    fixture.contract.change("7", |payment| payment.rate_wei_per_second += U256::from(1));
    let ticket = fixture.admit(7).await.unwrap();
    assert_eq!(ticket.payer(), PAYER);
    // Both passed the gate; one of them gets it.
    let other = fixture.streams.admit(Some("007"), SIZE).await.unwrap();
    let id = fixture.bind("first", ticket).await.unwrap();
    let taken = fixture.bind("second", other.clone()).await.unwrap_err();
    assert!(matches!(taken, StoreError::StreamTaken { .. }), "{taken}");
    assert_eq!(fixture.store.vms().await.unwrap().len(), 1);
    // Also when the first machine is gone.
    fixture.store.remove(&id).await.unwrap();
    let taken = fixture.bind("third", other).await.unwrap_err();
    assert!(matches!(taken, StoreError::StreamTaken { .. }), "{taken}");
}

#[tokio::test]
async fn a_stream_whose_machine_was_never_made_may_be_used_again() {
    let fixture = Fixture::new().await;
    fixture.open(7, 7200);
    fixture.rent(7).await.unwrap();
    let mut vm = fixture.store.vms().await.unwrap().remove(0).vm;
    vm.phase = Phase::Failed;
    fixture.store.save(vm.clone(), None).await.unwrap();
    assert!(fixture.store.streams().await.unwrap().is_empty());
    fixture.store.remove(&vm.id).await.unwrap();
    fixture.rent(7).await.unwrap();
}

#[tokio::test]
async fn a_chain_that_is_silent_makes_nothing_and_a_wrong_contract_says_so() {
    let fixture = Fixture::new().await;
    fixture.open(7, 7200);
    let fail = |kind, text: &str| {
        fixture.contract.set(|state| state.failure = Some(Failure::new(kind, text)));
    };
    fail(FailureKind::Unavailable, "no node answers");
    let error = fixture.admit(7).await.unwrap_err();
    assert!(matches!(error, GateError::ChainSilent { .. }) && error.retry_after().is_some());
    fail(FailureKind::FailedPrecondition, "it answers 320 bytes");
    let error = fixture.admit(7).await.unwrap_err();
    assert!(matches!(error, GateError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("320 bytes"));
}

#[tokio::test]
async fn a_machine_stops_when_its_stream_ends_is_kept_and_deleted_after_the_retention() {
    let mut fixture = Fixture::new().await;
    fixture.open(7, 86_400);
    let id = fixture.rent(7).await.unwrap();
    assert!(fixture.round().await.is_empty());
    assert_eq!(fixture.state(&id), PaymentState::Funded);
    fixture.contract.pass(86_400 - 3599);
    assert_eq!(fixture.round().await, [format!("stop {id}")]);
    assert_eq!(fixture.state(&id), PaymentState::RunningLow);
    // It rests now, and is kept; a restart of the provider changes nothing.
    for _ in 0..2 {
        fixture.contract.pass(4000);
        assert!(fixture.round().await.is_empty());
        assert_eq!(fixture.state(&id), PaymentState::RanOut);
        assert!(fixture.streams.status(&id).unwrap().deleted_at.is_some());
        assert!(fixture.streams.may_start(&id).await.is_err());
        fixture.restart();
    }
    fixture
        .backdate(Duration::from_secs(86_401), |stream, by| {
            stream.suspended.as_mut().unwrap().at -= by;
        })
        .await;
    assert_eq!(fixture.round().await, [format!("delete {id}")]);
    // What is owed stays in the books.
    let stream = fixture.store.streams().await.unwrap().remove(0);
    assert!(stream.released_at.is_some() && !stream.settled);
}

#[tokio::test]
async fn a_top_up_brings_a_stopped_machine_back() {
    let mut fixture = Fixture::new().await;
    fixture.open(7, 86_400);
    let id = fixture.rent(7).await.unwrap();
    fixture.contract.pass(90_000);
    assert_eq!(fixture.round().await, [format!("stop {id}")]);
    fixture.round().await;
    let refused = fixture.streams.may_start(&id).await.unwrap_err().to_string();
    assert!(refused.contains("top it up by at least"), "{refused}");
    fixture.contract.change("7", |payment| {
        let more = U256::from(RATE) * U256::from(3600 + 90_000);
        payment.deposit_wei += more;
        payment.stop_time = U256::from(START + 90_000 + 3600 + 90_000);
    });
    fixture.streams.may_start(&id).await.unwrap();
    assert!(fixture.round().await.is_empty());
    let status = fixture.streams.status(&id).unwrap();
    assert_eq!((status.state, status.deleted_at), (PaymentState::Funded, None));
}

#[tokio::test]
async fn nothing_starts_unpaid_because_nobody_has_looked_yet() {
    let mut fixture = Fixture::new().await;
    fixture.open(7, 86_400);
    let id = fixture.rent(7).await.unwrap();
    fixture.round().await;
    fixture.contract.pass(90_000);
    // A provider that has just begun again.
    fixture.restart();
    let refused = fixture.streams.may_start(&id).await.unwrap_err().to_string();
    assert!(refused.contains("run out"), "{refused}");
}

#[tokio::test]
async fn another_stream_takes_the_place_of_one_that_has_ended() {
    let mut fixture = Fixture::new().await;
    fixture.open(7, 86_400);
    let id = fixture.rent(7).await.unwrap();
    fixture.contract.change("7", |payment| payment.standing = Standing::Closed);
    assert_eq!(fixture.round().await, [format!("stop {id}")]);
    fixture.open(8, 86_400);
    let ticket = fixture.admit(8).await.unwrap();
    fixture.streams.rebind(ticket.clone(), &id, "vm-7").await.unwrap();
    assert!(fixture.round().await.is_empty());
    let status = fixture.streams.status(&id).unwrap();
    assert_eq!((status.stream_id.as_str(), status.state), ("8", PaymentState::Funded));
    fixture.streams.may_start(&id).await.unwrap();
    // Neither pays for anything else from now on.
    for ticket in [
        ticket.clone(),
        Ticket { key: StreamKey { reference: "7".into(), ..ticket.key.clone() }, ..ticket },
    ] {
        let taken = fixture.bind("another", ticket).await.unwrap_err();
        assert!(matches!(taken, StoreError::StreamTaken { .. }), "{taken}");
    }
    fixture.store.remove(&id).await.unwrap();
    let streams = fixture.store.streams().await.unwrap();
    assert!(streams.iter().all(|stream| stream.released_at.is_some()));
}

#[tokio::test]
async fn a_halted_or_terminated_stream_stops_its_machine_at_once() {
    let mut fixture = Fixture::new().await;
    for (reference, standing, state) in [
        (7, Standing::Halted, PaymentState::Halted),
        (8, Standing::Closed, PaymentState::Terminated),
    ] {
        fixture.open(reference, 86_400);
        let id = fixture.rent(reference).await.unwrap();
        assert!(fixture.round().await.is_empty());
        fixture.contract.change(&reference.to_string(), |payment| payment.standing = standing);
        fixture.contract.pass(10);
        assert_eq!(fixture.round().await, [format!("stop {id}")]);
        assert_eq!(fixture.state(&id), state);
        // Started by hand, it is stopped again.
        fixture.computer.0.lock().unwrap().insert(id.clone(), MachineState::Runs);
        assert_eq!(fixture.round().await, [format!("stop {id}")]);
    }
}

#[tokio::test]
async fn a_chain_that_does_not_answer_stops_nothing_that_is_paid_for_and_deletes_nothing() {
    let mut fixture = Fixture::new().await;
    fixture.open(7, 7200);
    let id = fixture.rent(7).await.unwrap();
    fixture.round().await;
    let down = Failure::new(FailureKind::Unavailable, "no node answers");
    for failure in [down, Failure::new(FailureKind::FailedPrecondition, "another contract")] {
        fixture.contract.set(|state| state.failure = Some(failure));
        assert!(fixture.round().await.is_empty());
        let status = fixture.streams.status(&id).unwrap();
        assert!(!status.chain_reachable && status.state == PaymentState::Funded);
        fixture.restart();
    }
    // The clock passes what was paid for.
    let earlier = |stream: &mut Stream, by| stream.read_at -= by;
    fixture.backdate(Duration::from_secs(7000), earlier).await;
    assert!(fixture.round().await.is_empty());
    fixture.backdate(Duration::from_secs(300), earlier).await;
    assert_eq!(fixture.round().await, [format!("stop {id}")]);
    fixture.backdate(Duration::from_secs(10 * 86_400), earlier).await;
    assert!(fixture.round().await.is_empty());
    assert!(fixture.streams.status(&id).unwrap().deleted_at.is_none());
    // It is back, and the stream was topped up in time.
    fixture.contract.set(|state| state.failure = None);
    fixture.contract.change("7", |payment| {
        payment.deposit_wei += U256::from(RATE) * U256::from(86_400);
        payment.stop_time += U256::from(86_400);
    });
    assert!(fixture.round().await.is_empty());
    assert_eq!(fixture.state(&id), PaymentState::Funded);
}

#[tokio::test]
async fn a_stream_that_disappears_is_looked_for_again_before_its_machine_stops() {
    let mut fixture = Fixture::new().await;
    fixture.open(7, 86_400);
    let id = fixture.rent(7).await.unwrap();
    fixture.round().await;
    let payment = {
        let mut state = fixture.contract.0.lock().unwrap();
        state.payments.remove("7").unwrap()
    };
    for _ in 0..3 {
        fixture.contract.pass(2);
        assert!(fixture.round().await.is_empty());
    }
    // The reorganisation is over: it was mined again.
    fixture.contract.set(|state| {
        state.payments.insert("7".to_owned(), payment);
    });
    fixture.contract.pass(2);
    assert!(fixture.round().await.is_empty());
    fixture.contract.set(|state| {
        state.payments.remove("7");
    });
    fixture.contract.set(|state| state.block += SETTLED_BLOCKS);
    assert!(fixture.round().await.is_empty());
    fixture.contract.set(|state| state.block += SETTLED_BLOCKS);
    assert_eq!(fixture.round().await, [format!("stop {id}")]);
    assert_eq!(fixture.state(&id), PaymentState::Missing);
}

#[tokio::test]
async fn a_node_that_lags_behind_is_no_evidence() {
    let mut fixture = Fixture::new().await;
    fixture.open(7, 7200);
    let id = fixture.rent(7).await.unwrap();
    fixture.contract.pass(3000);
    fixture.round().await;
    // One that has not seen the stream yet.
    fixture.contract.set(|state| {
        state.block = 90;
        state.payments.clear();
    });
    for _ in 0..3 {
        fixture.contract.set(|state| state.block += 1);
        assert!(fixture.round().await.is_empty());
        assert!(!fixture.streams.status(&id).unwrap().chain_reachable);
    }
}

#[tokio::test]
async fn nothing_is_stopped_where_the_operator_did_not_ask_for_it() {
    let mut fixture = Fixture::new().await;
    fixture.rules.monitor.enabled = false;
    fixture.open(7, 7200);
    let id = fixture.rent(7).await.unwrap();
    fixture.contract.pass(10_000);
    assert!(fixture.round().await.is_empty());
    assert_eq!(fixture.state(&id), PaymentState::RanOut);
    assert_eq!(fixture.streams.status(&id).unwrap().stops_in_seconds, None);
}

#[tokio::test]
async fn two_hundred_streams_are_read_at_once() {
    let mut fixture = Fixture::new().await;
    for reference in 1..=200 {
        fixture.open(reference, 86_400);
        fixture.rent(reference).await.unwrap();
    }
    let before = fixture.contract.1.load(Ordering::Relaxed);
    fixture.contract.pass(90_000);
    assert_eq!(fixture.round().await.len(), 200);
    assert_eq!(fixture.contract.1.load(Ordering::Relaxed), before + 1);
}

#[tokio::test]
async fn a_stream_is_shown_with_the_words_and_numbers_that_clients_read() {
    let mut fixture = Fixture::new().await;
    fixture.open(7, 7200);
    let id = fixture.rent(7).await.unwrap();
    fixture.contract.pass(600);
    fixture.round().await;
    let view = serde_json::to_string(&fixture.streams.view(&id).await.unwrap().unwrap()).unwrap();
    let vested = RATE * 600;
    for part in [
        r#""vm_id":"vm-7""#,
        r#""stream_id":7"#,
        &format!(r#""startTime":{START}"#),
        &format!(r#""ratePerSecond":{RATE}"#),
        r#""halted":false"#,
        &format!(r#""remaining_seconds":{}"#, 6600),
        &format!(r#""vested_wei":{vested}"#),
        &format!(r#""vested_wei_str":"{vested}""#),
        r#""verified":true,"reason":"ok""#,
    ] {
        assert!(view.contains(part), "{part} in {view}");
    }
    fixture.contract.change("7", |payment| payment.standing = Standing::Halted);
    assert_eq!(fixture.streams.view(&id).await.unwrap().unwrap().reason, "stream halted");
    let down = Failure::new(FailureKind::Unavailable, "no node answers");
    fixture.contract.set(|state| state.failure = Some(down));
    let view = fixture.streams.view(&id).await.unwrap().unwrap();
    assert!(!view.verified && view.reason.starts_with("stream lookup failed: "), "{view:?}");
    assert_eq!(fixture.streams.views().await.unwrap().len(), 1);
}
