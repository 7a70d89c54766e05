//! What a payment verifier promises: terms, references with one spelling, payments that are read at one block, and calls that
//! collect them.
//!
//! ```text
//! words       terms, references, calls: what needs no chain
//! chain       it answers: else nothing below can be tried
//! reading     many ─ unknown ─ the same again ─ side by side ─ cut off ─ after a restart
//! payments    those that the chain tells of, with the calls for them and what was paid out
//! trouble     nodes that are down or talk nonsense, another contract: never a payment that is absent or over
//! ```
//! Nothing is sent, and nobody's money moves. The payments that are read are those that something happened to in the newest
//! blocks of the chain that the harness has; where there are none, or no chain, those checks are not applicable.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use alloy::primitives::{Address, Bytes, U256};
use serde_json::{Value, json};

use super::{
    expect::{Shown, cut_off, described, needed, refusal, success},
    meddling::{MeddledChain, Meddling},
    record::{Missed, Recorder, Tried},
};
use crate::plugins::{
    Failure, FailureKind,
    ethereum::ChainFailure,
    harness::{Harness, Loaded},
    payment_component::PaymentComponent,
    payment_verifier::{
        Changes, Event, MAX_READ, Moment, Payment, PaymentCall, PaymentVerifier, Payout, Snapshot,
        Standing, Terms,
    },
};

const WRONG: &[FailureKind] = &[FailureKind::InvalidArgument];
const UNAVAILABLE: &[FailureKind] = &[FailureKind::Unavailable];
const CONFIGURATION: &[FailureKind] = &[FailureKind::FailedPrecondition];
/// What the provider takes for no evidence.
const NO_ANSWER: &[FailureKind] = &[FailureKind::Unavailable, FailureKind::FailedPrecondition];

const NO_TERMS: &str = "there are no terms";
const NO_CHAIN: &str = "the chain does not answer as it should";
const NO_CHANGES: &str = "what has changed is not known";
const NO_PAYMENTS: &str = "no payment is known: nothing has happened to any in the newest blocks";

/// None of these names a payment anywhere.
const NO_REFERENCES: [&str; 5] = ["", " ", "\0", "../outside", "one\ntwo"];

/// Blocks that are searched for payments, and at most so many of those are looked at.
const SEARCHED_BLOCKS: u64 = 3000;
const LOOKED_AT: usize = 50;

/// Of one call for one payment: it moves money twice at most.
const GAS: std::ops::RangeInclusive<u64> = 21_000..=1_000_000;

/// Exchanges with nodes for a hundred payments. More is one for each of them.
const EXCHANGES: usize = 20;

/// A block may come between two reads that are compared.
const ATTEMPTS: usize = 5;

const CUT_OFF: [Duration; 3] =
    [Duration::from_micros(300), Duration::from_millis(2), Duration::from_millis(20)];

/// What the checks work on.
pub struct Bed {
    pub plugin: Loaded<PaymentComponent>,
    chain: Arc<MeddledChain>,
}

/// Payments that are there, in no order, with what is read of them.
type Known = Vec<(String, Payment)>;

impl Shown for Snapshot {
    fn shown(&self) -> String {
        let found = self.payments.iter().flatten().count();
        format!("{found} payments of {}, at block {}", self.payments.len(), self.at.number)
    }
}

impl Shown for PaymentCall {
    fn shown(&self) -> String {
        format!("a call of {} bytes", self.data.len())
    }
}

impl Shown for String {
    fn shown(&self) -> String {
        format!("`{self}`")
    }
}

impl Shown for Changes {
    fn shown(&self) -> String {
        format!("{} payments, up to block {}", self.references.len(), self.up_to_block)
    }
}

impl Bed {
    pub fn new(plugin: Loaded<PaymentComponent>, chain: Arc<MeddledChain>) -> Self {
        Self { plugin, chain }
    }

    /// References that nothing can belong to, in the spelling that this plugin knows.
    async fn unknown(&self, count: usize) -> Tried<Vec<String>> {
        let far = U256::MAX >> 9;
        let spellings: [fn(U256) -> String; 3] = [
            |number| number.to_string(),
            |number| Address::from_word(number.into()).to_checksum(None),
            |number| format!("{number:#066x}"),
        ];
        for spelling in spellings {
            if self.plugin.check_reference(&spelling(far)).await.is_err() {
                continue;
            }
            let mut unknown = Vec::new();
            for number in 0..count {
                let reference = spelling(far - U256::from(number));
                let checked = self.plugin.check_reference(&reference).await;
                unknown.push(success(&format!("`check-reference` of `{reference}`"), checked)?);
            }
            return Ok(unknown);
        }
        Err(Missed::NotApplicable(
            "references are neither numbers nor addresses nor hashes, so none can be made up"
                .into(),
        ))
    }

    async fn read(&self, what: &str, references: &[String]) -> Tried<Snapshot> {
        success(&format!("`read` {what}"), self.plugin.read(references, 1).await)
    }

    /// Reads until two reads are of one block.
    async fn twice(&self, first: &[String], second: &[String]) -> Tried<(Snapshot, Snapshot)> {
        for _ in 0..ATTEMPTS {
            let one = self.read("of some payments", first).await?;
            let other = self.read("of some payments again", second).await?;
            if one.at == other.at {
                return Ok((one, other));
            }
        }
        Err(Missed::NotApplicable("there was another block each time that it was read".into()))
    }
}

pub async fn check(bed: &mut Bed, harness: &Harness, recorder: &mut Recorder) {
    let terms = words(bed, recorder).await;
    let latest = chain(bed, recorder).await;
    let known = reading(bed, latest, recorder).await;
    payments(bed, terms.as_ref(), known.as_ref(), recorder).await;
    restarted(bed, harness, known.as_ref(), recorder).await;
    trouble(bed, latest, known.as_ref(), recorder).await;
}

async fn words(bed: &Bed, recorder: &mut Recorder) -> Option<Terms> {
    let plugin = &bed.plugin;
    let terms = recorder
        .check("get-terms", "a chain, a contract, tokens, each once and always the same", async {
            let terms = match plugin.terms().await {
                Err(error) if error.kind == FailureKind::FailedPrecondition => {
                    return Err(Missed::NotApplicable(format!(
                        "{}; give the plugin's settings with --settings",
                        error.message
                    )));
                }
                answer => success("`get-terms`", answer)?,
            };
            let again = success("`get-terms`", plugin.terms().await)?;
            let tokens: BTreeSet<_> = terms.tokens.iter().collect();
            if again != terms {
                return Err(Missed::failed("it answers differently the second time"));
            }
            if terms.chain.trim().is_empty() || terms.contract.is_zero() {
                return Err(Missed::failed("the chain or the contract is nobody's"));
            }
            match (terms.tokens.len(), tokens.len()) {
                (0, _) => Err(Missed::failed("there is no token that it may be paid in")),
                (all, different) if all != different => {
                    Err(Missed::failed("a token is there twice"))
                }
                _ => Ok(terms),
            }
        })
        .await;
    recorder
        .check("check-reference", "what can name no payment is `invalid-argument`", async {
            let long = "7".repeat(10_000);
            for wrong in NO_REFERENCES.into_iter().chain([long.as_str()]) {
                let shown: String = wrong.escape_default().take(40).collect();
                let what = format!("`check-reference` of `{shown}`");
                refusal(&what, plugin.check_reference(wrong).await, WRONG)?;
            }
            Ok(())
        })
        .await;
    let unknown = recorder
        .check("check-reference", "what it answers is its own spelling", async {
            let unknown = bed.unknown(3).await?;
            for reference in &unknown {
                let what = format!("`check-reference` of `{reference}`");
                let again = success(&what, plugin.check_reference(reference).await)?;
                if again != *reference {
                    return Err(Missed::Failed(format!("{what} answers `{again}`")));
                }
            }
            Ok(unknown)
        })
        .await;
    recorder
        .check("collect", "a call with data and an honest limit of gas, another for each", async {
            let unknown = needed(unknown.as_ref(), "no reference is known")?;
            distinct_calls("collect", unknown, async |of| plugin.collect(of).await).await
        })
        .await;
    recorder
        .check("close", "the same, or `unsupported`", async {
            let unknown = needed(unknown.as_ref(), "no reference is known")?;
            let first = plugin.close(&unknown[0]).await;
            if first.as_ref().is_err_and(|error| error.kind == FailureKind::Unsupported) {
                return Ok(());
            }
            distinct_calls("close", unknown, async |of| plugin.close(of).await).await
        })
        .await;
    recorder
        .check("collect", "what can name no payment is `invalid-argument`", async {
            for wrong in NO_REFERENCES {
                let shown: String = wrong.escape_default().collect();
                let what = format!("`collect` of `{shown}`");
                refusal(&what, plugin.collect(wrong).await, WRONG)?;
            }
            Ok(())
        })
        .await;
    recorder
        .check("payouts", "events that mean nothing are no payout", async {
            let terms = needed(terms.as_ref(), NO_TERMS)?;
            let none = success("`payouts` of no events", plugin.payouts(&[]).await)?;
            let noise = |address: Address| Event {
                address: address.into(),
                topics: vec![[7; 32], [8; 32], [9; 32]],
                data: vec![1; 64],
            };
            let ours = noise(terms.contract);
            let bare = Event { topics: Vec::new(), ..ours.clone() };
            let odd = Event { data: vec![1; 7], ..ours.clone() };
            let noise = [noise(Address::repeat_byte(0xee)), ours, bare, odd];
            let of_noise = success("`payouts` of noise", plugin.payouts(&noise).await)?;
            match none.len() + of_noise.len() {
                0 => Ok(()),
                _ => Err(Missed::Failed(format!("it answers {of_noise:?}"))),
            }
        })
        .await;
    terms
}

async fn distinct_calls(
    name: &str,
    references: &[String],
    call: impl AsyncFn(&str) -> Result<PaymentCall, Failure>,
) -> Tried<()> {
    let mut different = BTreeSet::new();
    for reference in references {
        let written = success(&format!("`{name}` of `{reference}`"), call(reference).await)?;
        if written.data.len() < 4 {
            return Err(Missed::Failed(format!(
                "`{name}` answers {} bytes of data, which call no function",
                written.data.len()
            )));
        }
        if !GAS.contains(&written.gas_limit) {
            return Err(Missed::Failed(format!(
                "`{name}` wants {} gas; {} to {} is honest",
                written.gas_limit,
                GAS.start(),
                GAS.end()
            )));
        }
        different.insert(written.data);
    }
    match different.len() == references.len() {
        true => Ok(()),
        false => Err(Missed::Failed(format!("`{name}` is the same call for different payments"))),
    }
}

/// The newest block, if there is a chain.
async fn chain(bed: &Bed, recorder: &mut Recorder) -> Option<Moment> {
    let plugin = &bed.plugin;
    let latest = recorder
        .check("read", "of no payments at all it answers where the chain is", async {
            match plugin.read(&[], 1).await {
                Err(error) if NO_ANSWER.contains(&error.kind) => Err(Missed::NotApplicable(format!(
                    "the chain or the contract cannot be used: {}; name a node with --chain, and the contract with --settings",
                    described(&error)
                ))),
                answer => {
                    let read = success("`read`", answer)?;
                    if read.at != read.latest {
                        return Err(Missed::failed(
                            "with one confirmation it reads another block than the newest",
                        ));
                    }
                    if read.at.time == 0 {
                        return Err(Missed::failed("the block has no time"));
                    }
                    Ok(read.latest)
                }
            }
        })
        .await;
    recorder
        .check("read", "more confirmations are an earlier block, back to the first", async {
            needed(latest, NO_CHAIN)?;
            for confirmations in [1_u32, 2, 3, 10, u32::MAX] {
                let what = format!("`read` with {confirmations} confirmations");
                let read = success(&what, plugin.read(&[], confirmations).await)?;
                let due = read.latest.number.saturating_sub(u64::from(confirmations) - 1);
                if read.at.number != due || read.at.time > read.latest.time {
                    return Err(Missed::Failed(format!(
                        "{what} reads block {} where the newest is {}; it should be {due}",
                        read.at.number, read.latest.number
                    )));
                }
            }
            Ok(())
        })
        .await;
    latest
}

/// Reads what is not there, and finds out what is.
async fn reading(bed: &Bed, latest: Option<Moment>, recorder: &mut Recorder) -> Option<Known> {
    let plugin = &bed.plugin;
    let known = recorder
        .check("changed-since", "it names payments once, each by its own spelling", async {
            let latest = needed(latest, NO_CHAIN)?;
            let mut since = latest.number.saturating_sub(SEARCHED_BLOCKS);
            let mut references = Vec::new();
            while since < latest.number && references.len() < LOOKED_AT {
                let changes = match plugin.changed_since(since).await {
                    Err(error) if error.kind == FailureKind::Unsupported => {
                        return Err(Missed::NotApplicable(error.message));
                    }
                    answer => success("`changed-since`", answer)?,
                };
                if changes.up_to_block <= since {
                    return Err(Missed::Failed(format!(
                        "after block {since} it has looked up to {}, and there are {}",
                        changes.up_to_block, latest.number
                    )));
                }
                since = changes.up_to_block;
                let different: BTreeSet<_> = changes.references.iter().collect();
                if different.len() != changes.references.len() {
                    return Err(Missed::failed("it names a payment twice"));
                }
                for reference in changes.references {
                    let checked = plugin.check_reference(&reference).await;
                    if success("`check-reference`", checked)? != reference {
                        return Err(Missed::Failed(format!(
                            "it names `{reference}`, which `check-reference` spells in another way"
                        )));
                    }
                    if !references.contains(&reference) && references.len() < LOOKED_AT {
                        references.push(reference);
                    }
                }
            }
            Ok(references)
        })
        .await;
    recorder
        .check("changed-since", "after the newest block nothing has happened", async {
            needed(known.as_ref(), NO_CHANGES)?;
            for _ in 0..ATTEMPTS {
                let before = bed.read("of nothing", &[]).await?.latest.number;
                let changes = success("`changed-since`", plugin.changed_since(before).await)?;
                if changes.up_to_block != before {
                    continue;
                }
                return match changes.references.len() {
                    0 => Ok(()),
                    _ => Err(Missed::Failed(format!("it answers {}", changes.shown()))),
                };
            }
            Err(Missed::NotApplicable("there was another block each time that it was asked".into()))
        })
        .await;
    recorder
        .check("read", "a payment that never was is absent, and no error", async {
            needed(latest, NO_CHAIN)?;
            let unknown = bed.unknown(2).await?;
            let read = bed.read("of unknown payments", &unknown).await?;
            match read.payments.iter().flatten().next() {
                None => Ok(()),
                Some(payment) => Err(Missed::Failed(format!("it answers {payment:?}"))),
            }
        })
        .await;
    recorder
        .check("read", "what can name no payment is `invalid-argument`", async {
            needed(latest, NO_CHAIN)?;
            let wrong = plugin.read(&["../outside".to_owned()], 1).await;
            refusal("`read` of `../outside`", wrong, WRONG)
        })
        .await;
    recorder
        .check("read", "many are read at once, and not one by one", async {
            needed(latest, NO_CHAIN)?;
            let many = bed.unknown(MAX_READ).await?;
            let before = bed.chain.exchanges();
            bed.read("of a hundred payments", &many[..100]).await?;
            let exchanges = bed.chain.exchanges() - before;
            if exchanges > EXCHANGES {
                return Err(Missed::Failed(format!(
                    "it asks the nodes {exchanges} times for a hundred payments"
                )));
            }
            bed.read(&format!("of {MAX_READ} payments"), &many).await.map(drop)
        })
        .await;
    recorder
        .check("read", "payments that the chain tells of are there", async {
            let references = needed(known, NO_CHANGES)?;
            if references.is_empty() {
                return Err(Missed::NotApplicable(NO_PAYMENTS.into()));
            }
            let read = bed.read("of what happened", &references).await?;
            let mut known = Known::new();
            for (reference, payment) in references.into_iter().zip(read.payments) {
                let absent = || Missed::Failed(format!("`{reference}` is absent"));
                known.push((reference.clone(), payment.ok_or_else(absent)?));
            }
            Ok(known)
        })
        .await
}

async fn payments(
    bed: &Bed,
    terms: Option<&Terms>,
    known: Option<&Known>,
    recorder: &mut Recorder,
) {
    let plugin = &bed.plugin;
    recorder
        .check("read", "answers come in the order of the references", async {
            let known = needed(known, NO_PAYMENTS)?;
            let mut there: Vec<String> = known.iter().map(|(of, _)| of.clone()).collect();
            there.insert(1, bed.unknown(1).await?.swap_remove(0));
            let back: Vec<String> = there.iter().rev().cloned().collect();
            let (one, mut other) = bed.twice(&there, &back).await?;
            other.payments.reverse();
            if one.payments != other.payments || one.payments[1].is_some() {
                return Err(Missed::failed("asked in another order, it answers something else"));
            }
            Ok(())
        })
        .await;
    recorder
        .check("read", "side by side, and again, they are the same", async {
            let known = needed(known, NO_PAYMENTS)?;
            let there: Vec<String> = known.iter().map(|(of, _)| of.clone()).collect();
            let (one, other) = bed.twice(&there, &there).await?;
            if one != other {
                return Err(Missed::failed("at the same block it answers something else"));
            }
            let reads = (0..8).map(|_| bed.read("side by side", &there));
            for read in futures_util::future::join_all(reads).await {
                let read = read?;
                if read.at == one.at && read != one {
                    return Err(Missed::failed("side by side it answers something else"));
                }
            }
            Ok(())
        })
        .await;
    recorder
        .check("read", "cut off in the middle and repeated, it is as before", async {
            let known = needed(known, NO_PAYMENTS)?;
            let there: Vec<String> = known.iter().map(|(of, _)| of.clone()).collect();
            let before = bed.read("of some payments", &there).await?;
            for after in CUT_OFF {
                if cut_off(after, plugin.read(&there, 1)).await.is_some() {
                    break;
                }
            }
            let again = bed.read("after it was cut off", &there).await?;
            match again.at == before.at && again != before {
                false => Ok(()),
                true => Err(Missed::failed("it answers something else than before")),
            }
        })
        .await;
    recorder
        .check("read", "nobody took more than was paid in, and open ones have a payee", async {
            for (reference, payment) in needed(known, NO_PAYMENTS)? {
                if payment.withdrawn_wei > payment.deposit_wei {
                    return Err(Missed::Failed(format!("`{reference}`: {payment:?}")));
                }
                if payment.standing == Standing::Open && payment.payee.is_zero() {
                    return Err(Missed::Failed(format!("`{reference}` is open, and nobody's")));
                }
            }
            Ok(())
        })
        .await;
    for (name, promise) in [
        ("collect", "the contract takes it from the payee of a payment that runs"),
        ("close", "the contract takes it from the payee too, or it is `unsupported`"),
    ] {
        recorder
            .check(name, promise, async {
                let terms = needed(terms, NO_TERMS)?;
                let known = needed(known, NO_PAYMENTS)?;
                taken(bed, name, terms, known).await
            })
            .await;
    }
    recorder
        .check(
            "payouts",
            "what was paid out has its reference, and other contracts say nothing",
            async {
                let terms = needed(terms, NO_TERMS)?;
                needed(known, NO_PAYMENTS)?;
                let told = events(bed, terms).await?;
                let paid = success("`payouts`", plugin.payouts(&told).await)?;
                for Payout { reference, amount_wei } in &paid {
                    let what = format!("`check-reference` of `{reference}`");
                    let checked = success(&what, plugin.check_reference(reference).await)?;
                    if checked != *reference || amount_wei.is_zero() {
                        return Err(Missed::Failed(format!(
                            "it answers {amount_wei} for `{reference}`"
                        )));
                    }
                }
                let elsewhere = Address::repeat_byte(0xee).into();
                let others: Vec<Event> =
                    told.into_iter().map(|event| Event { address: elsewhere, ..event }).collect();
                match success("`payouts`", plugin.payouts(&others).await)?.as_slice() {
                    [] => Ok(()),
                    believed => {
                        Err(Missed::Failed(format!("it believes another contract: {believed:?}")))
                    }
                }
            },
        )
        .await;
    recorder
        .check("plugin", "it sends no transaction itself", async {
            match bed.chain.was_sent() {
                false => Ok(()),
                true => Err(Missed::failed("it tried to; the provider alone sends")),
            }
        })
        .await;
}

/// The node carries the call out without anything coming of it.
async fn taken(bed: &Bed, name: &str, terms: &Terms, known: &Known) -> Tried<()> {
    let now = bed.read("of nothing", &[]).await?.latest.time;
    let runs = |payment: &Payment| {
        payment.standing == Standing::Open
            && payment.withdrawn_wei.is_zero()
            && payment.start_time < U256::from(now)
            && payment.stop_time > payment.start_time
            && terms.tokens.contains(&payment.token)
    };
    let found = known.iter().find(|(_, payment)| runs(payment));
    let (reference, payment) =
        found.ok_or_else(|| Missed::NotApplicable("no payment is known that runs".into()))?;
    let call = match name {
        "collect" => bed.plugin.collect(reference).await,
        _ => bed.plugin.close(reference).await,
    };
    if call.as_ref().is_err_and(|error| name == "close" && error.kind == FailureKind::Unsupported) {
        return Ok(());
    }
    let call = success(&format!("`{name}` of `{reference}`"), call)?;
    let transaction = json!({
        "from": payment.payee, "to": terms.contract, "data": Bytes::from(call.data),
        "gas": format!("{:#x}", call.gas_limit),
    });
    let params = json!([transaction, "latest"]).to_string();
    match bed.chain.beneath().request(&terms.chain, "eth_call", &params).await {
        Ok(_) => Ok(()),
        Err(ChainFailure::Provider(error)) => Err(Missed::NotApplicable(error.message)),
        Err(ChainFailure::Rpc(refused)) => Err(Missed::Failed(format!(
            "the contract refuses the call for `{reference}` when {} makes it: {} (code {})",
            payment.payee, refused.message, refused.code
        ))),
    }
}

/// All that the contract has told in the newest blocks.
async fn events(bed: &Bed, terms: &Terms) -> Tried<Vec<Event>> {
    let latest = bed.read("of nothing", &[]).await?.latest.number;
    let from = latest.saturating_sub(SEARCHED_BLOCKS);
    let filter = json!([{
        "address": terms.contract, "fromBlock": format!("{from:#x}"), "toBlock": format!("{latest:#x}")
    }]);
    let asked = bed.chain.beneath().request(&terms.chain, "eth_getLogs", &filter.to_string()).await;
    let not_told =
        |why: String| Missed::NotApplicable(format!("the nodes tell of no events: {why}"));
    let logs = asked.map_err(|failure| match failure {
        ChainFailure::Provider(error) => not_told(error.message),
        ChainFailure::Rpc(refused) => not_told(refused.message),
    })?;
    let logs: Vec<Value> =
        serde_json::from_str(&logs).map_err(|error| not_told(error.to_string()))?;
    let event = |log: &Value| {
        let topics: Vec<[u8; 32]> = log["topics"]
            .as_array()?
            .iter()
            .map(|topic| topic.as_str()?.parse::<alloy::primitives::B256>().ok().map(Into::into))
            .collect::<Option<_>>()?;
        let data: Bytes = log["data"].as_str()?.parse().ok()?;
        Some(Event { address: terms.contract.into(), topics, data: data.into() })
    };
    Ok(logs.iter().filter_map(event).collect())
}

async fn restarted(
    bed: &mut Bed,
    harness: &Harness,
    known: Option<&Known>,
    recorder: &mut Recorder,
) {
    let fresh = recorder
        .check("plugin", "a provider that starts anew reads the same", async {
            let known = needed(known, NO_PAYMENTS)?;
            let there: Vec<String> = known.iter().map(|(of, _)| of.clone()).collect();
            let before = bed.read("of some payments", &there).await?;
            let fresh = harness.load_payment_verifier().await;
            let fresh = fresh.map_err(|error| Missed::Failed(error.to_string()))?;
            let after = success("`read`", fresh.read(&there, 1).await)?;
            match after.at == before.at && after != before {
                false => Ok(fresh),
                true => Err(Missed::failed("`read` answers something else than before")),
            }
        })
        .await;
    if let Some(fresh) = fresh {
        bed.plugin = fresh;
    }
}

/// The nodes and the contract get in the way, and nothing is ever taken for the end of a payment.
async fn trouble(
    bed: &Bed,
    latest: Option<Moment>,
    known: Option<&Known>,
    recorder: &mut Recorder,
) {
    let (plugin, chain) = (&bed.plugin, &bed.chain);
    let references = || async {
        needed(latest, NO_CHAIN)?;
        match known.and_then(|known| known.first()) {
            Some((reference, _)) => Ok(vec![reference.clone()]),
            None => bed.unknown(1).await,
        }
    };
    let asks_nodes = recorder
        .check("read", "when no node answers, it is `unavailable`, and nothing is absent", async {
            let references = references().await?;
            let before = chain.exchanges();
            chain.set(Meddling::Down);
            let answer = plugin.read(&references, 1).await;
            chain.set(Meddling::None);
            if chain.exchanges() == before {
                return Err(Missed::NotApplicable("it asks no nodes".into()));
            }
            refusal("`read`", answer, UNAVAILABLE)
        })
        .await;
    const NO_NODES: &str = "it asks no nodes, or is mistaken when they do not answer";
    recorder
        .check("changed-since", "when no node answers, it is `unavailable`", async {
            needed(asks_nodes, NO_NODES)?;
            chain.set(Meddling::Down);
            let answer = plugin.changed_since(0).await;
            chain.set(Meddling::None);
            match answer {
                Err(error) if error.kind == FailureKind::Unsupported => Ok(()),
                answer => refusal("`changed-since`", answer, UNAVAILABLE),
            }
        })
        .await;
    recorder
        .check("get-terms", "when no node answers, what needs none is as ever", async {
            let references = references().await?;
            needed(asks_nodes, NO_NODES)?;
            chain.set(Meddling::Down);
            let terms = plugin.terms().await;
            let checked = plugin.check_reference(&references[0]).await;
            let collected = plugin.collect(&references[0]).await;
            let paid = plugin.payouts(&[]).await;
            chain.set(Meddling::None);
            success("`get-terms`", terms)?;
            success("`check-reference`", checked)?;
            success("`collect`", collected)?;
            success("`payouts`", paid).map(drop)
        })
        .await;
    recorder
        .check("read", "when nodes talk nonsense, it is an error that is no evidence", async {
            let references = references().await?;
            needed(asks_nodes, NO_NODES)?;
            for nonsense in ["null", "17", "\"0x\"", "[]", r#"{"surprise":true}"#, "not JSON"] {
                chain.set(Meddling::Answers(nonsense.to_owned()));
                let answer = plugin.read(&references, 1).await;
                chain.set(Meddling::None);
                refusal(&format!("`read` when nodes answer {nonsense}"), answer, NO_ANSWER)?;
            }
            Ok(())
        })
        .await;
    recorder
        .check("read", "no contract, or another one, is `failed-precondition`", async {
            let references = references().await?;
            needed(asks_nodes, NO_NODES)?;
            if !chain.was_called() {
                return Err(Missed::NotApplicable("it calls no contract".into()));
            }
            let bytes = |count: usize| json!(Bytes::from(vec![1; count])).to_string();
            for (what, answers, code) in [
                ("there is no contract", bytes(0), bytes(0)),
                ("the contract answers one word", bytes(32), bytes(5)),
                ("the contract answers fourteen words", bytes(14 * 32), bytes(5)),
                ("the contract answers what is no number of words", bytes(289), bytes(5)),
            ] {
                chain.set(Meddling::Contract { answers, code });
                let answer = plugin.read(&references, 1).await;
                let of_none = plugin.read(&[], 1).await;
                chain.set(Meddling::None);
                refusal(&format!("`read` when {what}"), answer, CONFIGURATION)?;
                refusal(&format!("`read` of nothing when {what}"), of_none, CONFIGURATION)?;
            }
            Ok(())
        })
        .await;
    recorder
        .check("read", "when all is well again, so is it", async {
            let references = references().await?;
            bed.read("after the trouble", &references).await.map(drop)
        })
        .await;
}
