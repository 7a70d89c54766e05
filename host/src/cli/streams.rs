//! `streams …`: what machines have earned, and collecting it.

use std::process::ExitCode;

use alloy::primitives::Address;
use anyhow::bail;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::print::{self, Waiting};
use crate::{
    admin::AdminClient,
    payments::streams::{
        PayoutKind, PayoutState,
        ledger::{
            Amount, Ledger, StreamReport, StreamState, TokenPrice, Withdrawal, WithdrawalOutcome,
        },
    },
    settings::Settings,
    store,
};

#[derive(Debug, Subcommand)]
pub enum Streams {
    /// List the streams that machines are, and were, paid by
    List(Output),
    /// Show the streams of one machine, and every transaction that collected from them
    Show(Show),
    /// Show what was earned, collected, and is owed, in all
    #[command(long_about = EARNINGS)]
    Earnings(Output),
    /// Collect what streams owe, now
    #[command(long_about = WITHDRAW)]
    Withdraw(Withdraw),
}

pub const STREAMS: &str = "\
What machines have earned, out of the provider's own books: list, show and earnings ask the provider that runs, or read the \
database of one that does not. Amounts in GLM are shown in USD, too, as soon as a price of GLM is known.";

const EARNINGS: &str = "\
Shows what was earned, collected, and is owed, for each token. Earned is what has run up by the second. What a requestor's own \
transaction paid out when it ended a stream stands on the chain alone, and is not counted here.";

const WITHDRAW: &str = "\
Collects what streams owe, now, however little it is: the provider that runs signs one transaction after the other and waits until \
each is mined. The stream of a machine that is gone is ended by that, and its requestor has the rest back.

  golem-provider streams withdraw --vm-id my-vm
  golem-provider streams withdraw --all --json

Exit status: 0 all was collected, or there was nothing; 1 something was not; 2 no provider runs.";

#[derive(Debug, Args)]
pub struct Output {
    /// For programs: all digits, as texts
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Show {
    /// A machine's name or id
    vm: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["vm_id", "all"])]
pub struct Withdraw {
    /// From the streams of this machine, by its name or id
    #[arg(long, value_name = "VM")]
    vm_id: Option<String>,
    /// From all streams
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: Output,
}

/// No provider runs that could do what was asked.
const NOT_RUNNING: u8 = 2;

impl Streams {
    /// # Errors
    /// The provider does not answer, its database cannot be read, or there is no such machine.
    pub async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let client = AdminClient::connect(&settings.data_dir).await?;
        let ledger = match &client {
            Some(client) => client.ledger().await?,
            None => at_rest(settings)?,
        };
        let names = Names::of(settings);
        match self {
            Self::List(Output { json: true }) => print::print_json(&ledger.streams)?,
            Self::List(_) => print::print(&list(&ledger, &names))?,
            Self::Show(Show { vm, output }) => {
                let streams = of_vm(&ledger, &vm)?;
                match output.json {
                    true => print::print_json(&streams)?,
                    false => print::print(
                        &streams
                            .iter()
                            .map(|stream| shown(stream, &names))
                            .collect::<Vec<_>>()
                            .join("\n"),
                    )?,
                }
            }
            Self::Earnings(Output { json: true }) => print::print_json(&json!({
                "earnings": ledger.earnings, "usd_per_glm": ledger.usd_per_glm,
            }))?,
            Self::Earnings(_) => print::print(&earnings(&ledger, &names))?,
            Self::Withdraw(withdraw) => {
                let Some(client) = client else {
                    eprintln!(
                        "golem-provider: no provider runs on {}, and only one that does withdraws; start it first",
                        settings.data_dir.display()
                    );
                    return Ok(ExitCode::from(NOT_RUNNING));
                };
                return withdraw.run(&client, &ledger, &names).await;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// From the database of a provider that does not run. Streams have gone on since, by the clock.
fn at_rest(settings: &Settings) -> anyhow::Result<Ledger> {
    let (streams, payouts) = store::streams_at_rest(&settings.data_dir)?;
    let rate = store::read_glm_rate(&settings.data_dir)?;
    let price = TokenPrice { token: glm(settings), usd: rate.map(|rate| rate.usd) };
    Ok(Ledger::new(&streams, &payouts, price, Timestamp::now()))
}

fn glm(settings: &Settings) -> Option<Address> {
    settings.chains.glm_token.as_deref()?.parse().ok()
}

fn of_vm<'a>(ledger: &'a Ledger, vm: &str) -> anyhow::Result<Vec<&'a StreamReport>> {
    let streams: Vec<&StreamReport> =
        ledger.streams.iter().filter(|stream| stream.vm_id == vm || stream.vm_name == vm).collect();
    if streams.is_empty() {
        bail!(
            "no machine {vm} was ever paid by a stream; `golem-provider streams list` has those that were"
        );
    }
    Ok(streams)
}

/// What tokens are called.
struct Names {
    glm: Option<String>,
}

impl Names {
    fn of(settings: &Settings) -> Names {
        Names { glm: glm(settings).map(|token| token.to_checksum(None)) }
    }

    fn of_token<'a>(&self, token: &'a str) -> &'a str {
        match token {
            _ if self.glm.as_deref() == Some(token) => "GLM",
            _ if token.parse::<Address>().is_ok_and(|token| token.is_zero()) => "ETH",
            other => other,
        }
    }
}

fn list(ledger: &Ledger, names: &Names) -> String {
    if ledger.streams.is_empty() {
        return "No machine was ever paid by a stream.\n".to_owned();
    }
    let mut rows = vec![
        ["STREAM", "VM", "STATE", "LEFT", "TOKEN", "EARNED", "WITHDRAWN", "TO WITHDRAW"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(ledger.streams.iter().map(|stream| {
        vec![
            print::shortened(&stream.stream_id, 20),
            stream.vm_name.clone(),
            state(stream.state).to_owned(),
            left(stream),
            print::shortened(names.of_token(&stream.token), 12),
            amount(&stream.earned),
            amount(&stream.withdrawn),
            amount(&stream.withdrawable),
        ]
    }));
    print::table(&rows)
}

fn shown(stream: &StreamReport, names: &Names) -> String {
    let token = names.of_token(&stream.token);
    let exact = |amount: &Amount| match &amount.usd {
        Some(usd) => format!("{} {token} ({usd} USD)", amount.token),
        None => format!("{} {token}", amount.token),
    };
    let mut rows = vec![
        ("stream", format!("{} of {} on {}", stream.stream_id, stream.contract, stream.chain)),
        ("machine", format!("{} ({})", stream.vm_name, stream.vm_id)),
        ("state", state(stream.state).to_owned()),
        ("paid by", stream.payer.clone()),
        ("token", stream.token.clone()),
        ("rate", format!("{} wei a second", stream.rate_wei_per_second)),
        ("deposit", exact(&stream.deposit)),
        ("left", left(stream)),
        ("earned", exact(&stream.earned)),
        ("withdrawn", exact(&stream.withdrawn)),
        ("to withdraw", exact(&stream.withdrawable)),
        ("gas", format!("{} wei", stream.gas_wei)),
        ("bound", stream.bound_at.to_string()),
    ];
    if let Some(released_at) = stream.released_at {
        rows.push(("machine gone", released_at.to_string()));
    }
    rows.push(("read last", stream.as_of.to_string()));
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let mut text = print::table(&rows);
    if stream.transactions.is_empty() {
        return text + "Nothing was withdrawn yet.\n";
    }
    let mut rows = vec![
        ["TIME", "WHAT", "STATE", "AMOUNT", "GAS (WEI)", "TRANSACTION"].map(str::to_owned).to_vec(),
    ];
    for one in &stream.transactions {
        rows.push(vec![
            one.updated_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            kind(one.kind).to_owned(),
            match one.state {
                PayoutState::Planned => "under way",
                PayoutState::Mined => "mined",
                PayoutState::Failed => "failed",
            }
            .to_owned(),
            one.amount.as_ref().map_or_else(|| "-".to_owned(), amount),
            one.gas_wei.clone().unwrap_or_else(|| "-".to_owned()),
            one.transaction.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    text += &format!("\n{}", print::table(&rows));
    let last = stream.transactions.last().and_then(|last| Some((last, last.error.as_ref()?)));
    if let Some((last, error)) = last {
        text += &print::wrapped(&format!("{}: ", kind(last.kind)), error, print::width());
    }
    text
}

fn earnings(ledger: &Ledger, names: &Names) -> String {
    if ledger.earnings.is_empty() {
        return "No machine was ever paid by a stream.\n".to_owned();
    }
    let mut rows = vec![
        ["TOKEN", "STREAMS", "EARNED", "WITHDRAWN", "TO WITHDRAW", "OF MACHINES GONE", "GAS (WEI)"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(ledger.earnings.iter().map(|sum| {
        vec![
            names.of_token(&sum.token).to_owned(),
            sum.streams.to_string(),
            amount(&sum.earned),
            amount(&sum.withdrawn),
            amount(&sum.withdrawable),
            amount(&sum.owed),
            sum.gas_wei.clone(),
        ]
    }));
    let mut text = print::table(&rows);
    if let Some(usd) = &ledger.usd_per_glm {
        text += &format!("1 GLM = {usd} USD.\n");
    }
    text
}

fn state(state: StreamState) -> &'static str {
    match state {
        StreamState::Running => "running",
        StreamState::Ended => "ended",
        StreamState::Unpaid => "unpaid",
        StreamState::Owed => "owed",
        StreamState::Settled => "settled",
    }
}

fn kind(kind: PayoutKind) -> &'static str {
    match kind {
        PayoutKind::Withdraw => "withdraw",
        PayoutKind::Terminate => "end",
    }
}

fn left(stream: &StreamReport) -> String {
    match stream.remaining_seconds {
        0 => "-".to_owned(),
        seconds => print::duration(std::time::Duration::from_secs(seconds)),
    }
}

/// For tables: six digits after the point, and what that is worth.
fn amount(amount: &Amount) -> String {
    let token = rounded(&amount.token);
    match &amount.usd {
        Some(usd) if amount.wei != "0" => format!("{token} ({} USD)", rounded(usd)),
        _ => token,
    }
}

/// Cut off after six digits, but never zero for what is not.
fn rounded(decimal: &str) -> String {
    const DIGITS: usize = 6;
    let Some((whole, fraction)) = decimal.split_once('.') else { return decimal.to_owned() };
    let kept = fraction.get(..DIGITS).unwrap_or(fraction).trim_end_matches('0');
    match (whole, kept) {
        ("0", "") => "< 0.000001".to_owned(),
        (whole, "") => whole.to_owned(),
        (whole, kept) => format!("{whole}.{kept}"),
    }
}

impl Withdraw {
    async fn run(
        &self,
        client: &AdminClient,
        ledger: &Ledger,
        names: &Names,
    ) -> anyhow::Result<ExitCode> {
        let streams: Vec<&StreamReport> = match &self.vm_id {
            Some(vm) => of_vm(ledger, vm)?,
            None => ledger.streams.iter().collect(),
        };
        // What there is, the provider finds out: what its books say may be some minutes old.
        let owing: Vec<&StreamReport> =
            streams.into_iter().filter(|stream| stream.state != StreamState::Settled).collect();
        let mut done = Vec::new();
        let waiting = Waiting::for_("asking the provider");
        for (index, stream) in owing.iter().enumerate() {
            waiting.now_for(format!(
                "{} of {}: collecting from stream {} of {}, until the transaction is mined",
                index + 1,
                owing.len(),
                stream.stream_id,
                stream.vm_name
            ));
            let withdrawal = client.withdraw(&stream.contract, &stream.stream_id).await?;
            if !self.output.json {
                waiting.print(&line(&withdrawal, names))?;
            }
            done.push(withdrawal);
        }
        drop(waiting);
        if self.output.json {
            print::print_json(&json!({ "withdrawals": done }))?;
        } else if done.is_empty() {
            print::print("There is nothing to withdraw.\n")?;
        }
        let incomplete = |one: &Withdrawal| {
            matches!(one.outcome, WithdrawalOutcome::Failed | WithdrawalOutcome::Pending)
        };
        Ok(match done.iter().any(incomplete) {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        })
    }
}

fn line(one: &Withdrawal, names: &Names) -> String {
    let head = format!("stream {} of {}: ", one.stream_id, one.vm_name);
    let reason = one.reason.as_deref().unwrap_or_default();
    let text = match (one.outcome, &one.amount) {
        (WithdrawalOutcome::Collected, Some(amount)) => {
            let usd = amount
                .usd
                .as_ref()
                .map(|usd| format!(" ({} USD)", rounded(usd)))
                .unwrap_or_default();
            let ended = match one.kind {
                Some(PayoutKind::Terminate) => "; the stream is ended",
                _ => "",
            };
            format!(
                "{} {}{usd} came, for {} wei of gas, in {}{ended}",
                amount.token,
                names.of_token(&one.token),
                one.gas_wei.as_deref().unwrap_or("?"),
                one.transaction.as_deref().unwrap_or("?")
            )
        }
        (WithdrawalOutcome::Collected, None) => format!("collected; {reason}"),
        (WithdrawalOutcome::Nothing, _) => "there was nothing to collect".to_owned(),
        (WithdrawalOutcome::NotWorthIt, _) => reason.to_owned(),
        (WithdrawalOutcome::Pending, _) => format!("not mined yet, and looked after: {reason}"),
        (WithdrawalOutcome::Failed, _) => format!("nothing was collected: {reason}"),
    };
    print::wrapped(&head, &text, print::width())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_amount_is_not_shown_as_nothing() {
        let shown = ["0", "1.50", "0.0000001", "12.3456789", "3.00000001"].map(rounded);
        assert_eq!(shown, ["0", "1.5", "< 0.000001", "12.345678", "3"]);
    }

    #[test]
    fn an_empty_ledger_is_told_in_words() {
        let ledger = Ledger::new(&[], &[], TokenPrice::default(), Timestamp::UNIX_EPOCH);
        let names = Names { glm: None };
        assert!(list(&ledger, &names).starts_with("No machine"));
        assert!(earnings(&ledger, &names).starts_with("No machine"));
        assert_eq!(names.of_token(&Address::ZERO.to_checksum(None)), "ETH");
    }
}
