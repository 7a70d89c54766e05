//! A well-behaved payment verifier with a chain that stands still: three payments, numbered from 1, at one block. The
//! contract of its terms is asked whether it is there, and has to answer with nine words.
//!
//! [`Fault`] names the ways in which it can be told to break the contract of its kind.

use core::time::Duration;

use golem_provider_sdk::{
    Description, Error, Finding, PaymentVerifier, Plugin, Result,
    evm::{self, PAYMENTS},
    payment_verifier::{Call, Changes, Event, Moment, Payment, Payout, Snapshot, Standing, Terms},
    random, settings,
    signer::{self, Transaction},
};
use serde::Deserialize;
use serde_json::{Value, json};

const CONTRACT: &str = "0x7077777777777777777777777777777777777777";
const BLOCK: u64 = 1000;
const TIME: u64 = 1_700_000_000;
/// `0x` and nine words.
const ANSWER_CHARS: usize = 2 + 9 * 64;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Settings {
    fault: Option<Fault>,
}

/// A promise that is not kept, to see whether somebody notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    /// Terms are others each time.
    ChangesTerms,
    /// Whatever is named is a payment.
    TakesAnyReference,
    /// A reference has another spelling each time.
    Respells,
    /// One call for all payments.
    SameCall,
    NoGas,
    SameClose,
    CollectsAnything,
    /// Events that mean nothing are payouts.
    InventsPayouts,
    NoTime,
    IgnoresConfirmations,
    NamesTwice,
    NamesOtherwise,
    StandsStill,
    Invents,
    Forgets,
    OneByOne,
    ReadsAnything,
    /// Payments are answered in the order of their numbers.
    Sorts,
    /// At the same block payments are others each time.
    Flickers,
    Overdrawn,
    /// A payment is collected by a call that its contract does not know.
    CollectsElsewhere,
    /// Whoever tells of a payout is believed.
    BelievesAnybody,
    Sends,
    /// What cannot be asked is absent.
    AbsentWhenDown,
    /// Not only payments, terms as well come from nodes.
    TermsFromNodes,
    TrustsNonsense,
    TrustsAnyContract,
    Traps,
}

/// The verifier.
pub struct Tollbooth;

fn fault() -> Option<Fault> {
    settings::get::<Settings>().ok().and_then(|settings| settings.fault)
}

fn is(this: Fault) -> bool {
    fault() == Some(this)
}

fn number(reference: &str) -> Result<String> {
    let digits = !reference.is_empty() && reference.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || reference.len() > 80 {
        return Err(Error::InvalidArgument("a payment is named by a number, such as 2".into()));
    }
    let plain = reference.trim_start_matches('0');
    Ok(if plain.is_empty() { "0" } else { plain }.to_owned())
}

/// The contract is there, and answers as it should.
fn look() -> Result<()> {
    let call = json!([{ "to": CONTRACT, "data": "0x64d60d91" }, "latest"]);
    let answers = match evm::request_all(PAYMENTS, &[("eth_call", call)]) {
        Err(_) if is(Fault::AbsentWhenDown) => return Err(Error::NotFound("down".into())),
        answers => answers?,
    };
    match answers.into_iter().next() {
        Some(Ok(Value::String(words))) if words.starts_with("0x") => match words.len() {
            ANSWER_CHARS => Ok(()),
            _ if is(Fault::TrustsAnyContract) => Ok(()),
            _ => Err(Error::FailedPrecondition(format!("{CONTRACT} is another contract"))),
        },
        _ if is(Fault::TrustsNonsense) => Ok(()),
        _ => Err(Error::Unavailable("the node talks nonsense".into())),
    }
}

fn payment(reference: &str) -> Option<Payment> {
    let standing = match reference {
        "1" => Standing::Open,
        "2" => Standing::Halted,
        "3" => Standing::Closed,
        _ if is(Fault::Invents) => Standing::Open,
        _ => return None,
    };
    if is(Fault::Forgets) {
        return None;
    }
    let nobody = "0x0000000000000000000000000000000000000000";
    let somebody = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";
    let rate = if is(Fault::Flickers) { u64::from(random::bytes(1)[0]) << 32 } else { 5 };
    let rate = if is(Fault::Flickers) { rate + u64::from(random::bytes(1)[0]) } else { rate };
    Some(Payment {
        standing,
        token: nobody.into(),
        payer: "0x70997970C51812dc3A010C7d01b50e0d17dc79C8".into(),
        payee: if reference == "3" { nobody } else { somebody }.into(),
        rate_per_second: rate.to_string(),
        start_time: (TIME - 100).to_string(),
        stop_time: (TIME + 100).to_string(),
        deposit: "1000".into(),
        withdrawn: if is(Fault::Overdrawn) { "1001" } else { "0" }.into(),
    })
}

fn call(function: u8, reference: &str) -> Result<Call> {
    let same = is(Fault::SameCall) || (is(Fault::SameClose) && function == 2);
    let of = if same { "1".to_owned() } else { number(reference)? };
    let mut data = vec![function; 4];
    data.extend(of.bytes());
    let gas_limit = if is(Fault::NoGas) { 10 } else { 100_000 };
    Ok(Call { data, gas_limit })
}

impl Plugin for Tollbooth {
    fn describe() -> Description {
        Description {
            name: "tollbooth".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: env!("CARGO_PKG_DESCRIPTION").into(),
            license: env!("CARGO_PKG_LICENSE").into(),
            settings_schema: json!({
                "type": "object", "additionalProperties": false,
                "properties": { "fault": { "type": "string", "description": "a promise that is not kept" } }
            })
            .to_string(),
        }
    }

    fn probe() -> Result<Vec<Finding>> {
        settings::get::<Settings>().map(|_| Vec::new())
    }
}

impl PaymentVerifier for Tollbooth {
    fn terms() -> Result<Terms> {
        if is(Fault::TermsFromNodes) {
            look()?;
        }
        let token = match is(Fault::ChangesTerms) {
            true => random::bytes(20).iter().map(|byte| format!("{byte:02x}")).collect(),
            false => "0".repeat(40),
        };
        Ok(Terms {
            chain: PAYMENTS.into(),
            contract: CONTRACT.into(),
            tokens: vec![format!("0x{token}")],
        })
    }

    fn check_reference(reference: String) -> Result<String> {
        match fault() {
            Some(Fault::TakesAnyReference) => Ok("1".into()),
            Some(Fault::Respells) => number(&reference).map(|number| format!("{number}0")),
            _ => number(&reference),
        }
    }

    fn read(references: Vec<String>, confirmations: u32) -> Result<Snapshot> {
        if is(Fault::Traps) {
            panic!("the barrier is stuck");
        }
        if is(Fault::OneByOne) {
            for _ in &references {
                look()?;
            }
        }
        let down = match look() {
            Err(Error::NotFound(_)) => true,
            seen => seen.map(|()| false)?,
        };
        if is(Fault::Sends) {
            let nothing = Transaction::call(CONTRACT, Vec::new());
            // It is refused, and to have tried is enough.
            let _ = signer::send_transaction(PAYMENTS, &nothing, Duration::from_secs(1));
        }
        let mut numbers: Vec<String> = match is(Fault::ReadsAnything) {
            true => references,
            false => references.iter().map(|one| number(one)).collect::<Result<_>>()?,
        };
        if is(Fault::Sorts) {
            numbers.sort();
        }
        let back = if is(Fault::IgnoresConfirmations) { 0 } else { u64::from(confirmations) - 1 };
        let moment = |number: u64| Moment {
            number,
            hash: format!("0x{number:064x}"),
            time: if is(Fault::NoTime) { 0 } else { TIME - (BLOCK - number) },
        };
        Ok(Snapshot {
            at: moment(BLOCK.saturating_sub(back)),
            latest: moment(BLOCK),
            payments: numbers.iter().map(|number| payment(number).filter(|_| !down)).collect(),
        })
    }

    fn changed_since(block: u64) -> Result<Changes> {
        look().or_else(|error| match error {
            Error::NotFound(_) => Ok(()),
            error => Err(error),
        })?;
        let references: &[&str] = match fault() {
            Some(Fault::NamesTwice) => &["1", "2", "1"],
            Some(Fault::NamesOtherwise) => &["1", "02"],
            _ => &["1", "2", "3"],
        };
        let references = if block < BLOCK { references } else { &[] };
        let up_to_block = if is(Fault::StandsStill) { block.min(BLOCK) } else { BLOCK };
        let references = references.iter().map(|one| (*one).to_owned()).collect();
        Ok(Changes { up_to_block, references })
    }

    fn collect(reference: String) -> Result<Call> {
        match fault() {
            Some(Fault::CollectsAnything) => call(1, "1").map(|mut call| {
                call.data.extend(reference.bytes());
                call
            }),
            Some(Fault::CollectsElsewhere) => call(0xff, &reference),
            _ => call(1, &reference),
        }
    }

    fn close(reference: String) -> Result<Call> {
        call(2, &reference)
    }

    fn payouts(events: Vec<Event>) -> Result<Vec<Payout>> {
        let told = events.iter().filter(|event| {
            let ours = event.address.eq_ignore_ascii_case(CONTRACT) || is(Fault::BelievesAnybody);
            let known = event.topics.first().is_some_and(|topic| topic[..] == [0xaa; 32]);
            (ours && known) || is(Fault::InventsPayouts)
        });
        Ok(told.map(|_| Payout { reference: "1".into(), amount: "5".into() }).collect())
    }
}

#[cfg(target_arch = "wasm32")]
golem_provider_sdk::export_payment_verifier!(Tollbooth);
