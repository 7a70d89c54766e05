//! `wallet …`: the provider's key, what it has on its chains, and test money for it.
//!
//! A private key is never an argument, which every user of the machine could read; it comes from a file or from standard
//! input, and goes to a terminal only on demand. Commands that change the key change files: a provider that runs keeps the
//! one that it started with.

mod balance;
mod faucet;

use std::{
    fs::File,
    io::{self, BufRead, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::print;
use crate::{
    admin::AdminClient,
    payments::wallet::{
        KeyOrigin, Wallet,
        custody::{self, CustodyError},
        keystore,
    },
    settings::{Secret, Settings},
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the provider's address, which is its id, and where its key is
    Show(Output),
    /// Show what the provider has on its chains
    #[command(long_about = BALANCE)]
    Balance(Output),
    /// Make a key that exists elsewhere the provider's key
    #[command(long_about = IMPORT)]
    Import(Import),
    /// Print the private key, or write an encrypted copy of it to a file
    #[command(long_about = EXPORT)]
    Export(Export),
    /// Keep the key encrypted from now on, under a passphrase
    #[command(long_about = ENCRYPT)]
    Encrypt(Output),
    /// Ask for test money on the chain that is advertised on
    #[command(long_about = FAUCET)]
    Faucet(FaucetArguments),
    /// Ask for test money on the chain that is paid on; the same as faucet --chain payments
    FaucetL2(FaucetL2),
}

const BALANCE: &str = "\
Shows what the provider has on the chain that is advertised on (GOLEM_PROVIDER_GOLEM_BASE_RPC_URL) and on the one that is \
paid on (GOLEM_PROVIDER_POLYGON_RPC_URL): the chain's own coin, and GLM where GOLEM_PROVIDER_GLM_TOKEN_ADDRESS is set.

Exit status: 0 all was answered, 1 something was not, 2 no chain is set.";

const IMPORT: &str = "\
Makes a key that exists elsewhere the provider's key: 64 hex digits, or a Web3 keystore (JSON), whose passphrase is asked for \
or read from --passphrase-file. The address of the key is the provider's id, so another key is another provider: one that is \
there is replaced only with --replace, and kept beside the new one, with .old at the end of its name.

  golem-provider wallet import ~/keystore.json
  pass show golem/provider | golem-provider wallet import -

A provider that runs keeps its key until it is started again.";

const EXPORT: &str = "\
Prints the private key in hex. Whoever has it is the provider and has its money, so it is printed only when you say so: by \
answering, or with --yes.

With --keystore FILE nothing is printed: a Web3 keystore is written to a new file, encrypted with a passphrase that is asked \
for or read from --passphrase-file. That is the form for a backup.";

const ENCRYPT: &str = "\
Keeps the key encrypted from now on, in provider.json instead of provider.key. The passphrase is that in the file that \
GOLEM_PROVIDER_ETHEREUM_KEYSTORE_PASSPHRASE_FILE names, which the provider reads at each start: set it first, for all of its \
commands. The file helps where it is better guarded than the key directory, such as in a systemd credential.";

const FAUCET: &str = "\
Asks a testnet's faucet for money, unless the provider has more than 0.01 ETH there already. The faucet wants some work done \
first, which takes all processors for some seconds.

Settings: GOLEM_PROVIDER_FAUCET_URL (chain golem-base) or GOLEM_PROVIDER_L2_FAUCET_URL (chain payments), \
GOLEM_PROVIDER_CAPTCHA_URL and GOLEM_PROVIDER_CAPTCHA_API_KEY; with the URL of the chain's node, the money is waited for.

Exit status: 0 the money is there or on its way, or was not needed; 1 it is not; 2 a setting is missing.";

#[derive(Debug, Args)]
pub struct Output {
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Import {
    /// Holds the key; - for standard input
    file: PathBuf,
    /// Take the place of another key, which is kept as a copy
    #[arg(long)]
    replace: bool,
    /// Holds the passphrase of the keystore that is imported
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Export {
    /// Write an encrypted keystore to this new file instead
    #[arg(long, value_name = "FILE")]
    keystore: Option<PathBuf>,
    /// Holds the passphrase to encrypt the keystore with
    #[arg(long, value_name = "FILE", requires = "keystore")]
    passphrase_file: Option<PathBuf>,
    /// Print the private key without asking
    #[arg(long, conflicts_with = "keystore")]
    yes: bool,
}

#[derive(Debug, Args)]
pub struct FaucetArguments {
    /// Where the money is wanted
    #[arg(long, value_enum, default_value_t = ChainName::GolemBase)]
    chain: ChainName,
    #[command(flatten)]
    more: FaucetL2,
}

#[derive(Debug, Args)]
pub struct FaucetL2 {
    /// Ask even where the provider has enough
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: Output,
}

/// A chain, by what the provider does on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ChainName {
    /// Advertisements are on it
    GolemBase,
    /// Machines are paid on it
    Payments,
}

impl ChainName {
    fn as_str(self) -> &'static str {
        match self {
            Self::GolemBase => "golem-base",
            Self::Payments => "payments",
        }
    }

    fn rpc_key(self) -> &'static str {
        match self {
            Self::GolemBase => "GOLEM_PROVIDER_GOLEM_BASE_RPC_URL",
            Self::Payments => "GOLEM_PROVIDER_POLYGON_RPC_URL",
        }
    }
}

/// How a command ended that has done nothing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Some of what was asked for could not be found out.
    Incomplete,
    /// Settings or consent are missing, and it was said which.
    NotAsked,
}

impl Command {
    /// # Errors
    /// What was asked for could not be done.
    pub fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        match self {
            Self::Show(output) => show(settings, &output),
            Self::Balance(output) => balance::run(settings, output.json),
            Self::Import(import) => import.run(settings),
            Self::Export(export) => export.run(settings),
            Self::Encrypt(output) => {
                let wallet = custody::encrypt(&settings.wallet)?;
                say(
                    &output,
                    &wallet,
                    json!({}),
                    &format!("the key is encrypted now, in {}", wallet.origin()),
                )
            }
            Self::Faucet(FaucetArguments { chain, more }) => {
                faucet::run(settings, chain, more.force, more.output.json)
            }
            Self::FaucetL2(FaucetL2 { force, output }) => {
                faucet::run(settings, ChainName::Payments, force, output.json)
            }
        }
    }
}

fn show(settings: &Settings, output: &Output) -> anyhow::Result<Outcome> {
    let wallet = custody::present(&settings.wallet)?;
    let mut text = format!("{}\nkey: {}", wallet.provider_id(), described(wallet.origin()));
    if matches!(wallet.origin(), KeyOrigin::File(_)) && settings.wallet.passphrase_file.is_some() {
        text += "\nThere is a passphrase for it: `golem-provider wallet encrypt` makes use of it.";
    }
    say(output, &wallet, json!({}), &text)
}

fn described(origin: &KeyOrigin) -> String {
    match origin {
        KeyOrigin::Settings => format!("from the settings ({origin})"),
        KeyOrigin::File(_) => format!("{origin}, not encrypted"),
        KeyOrigin::Keystore(_) => format!("{origin}, encrypted"),
    }
}

/// A line for people, or an object with the wallet and `more` for programs.
fn say(output: &Output, wallet: &Wallet, more: Value, text: &str) -> anyhow::Result<Outcome> {
    if output.json {
        let (kind, path) = match wallet.origin() {
            KeyOrigin::Settings => ("settings", None),
            KeyOrigin::File(path) => ("file", Some(path)),
            KeyOrigin::Keystore(path) => ("keystore", Some(path)),
        };
        let mut object = json!({
            "address": wallet.provider_id(),
            "key": { "kind": kind, "path": path, "encrypted": kind == "keystore" },
        });
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
        }
        print::print_json(&object)?;
    } else {
        print::print(&format!("{text}\n"))?;
    }
    Ok(Outcome::Done)
}

impl Import {
    fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let signer = key_in(&self.file, self.passphrase_file.as_deref())?;
        let imported = custody::import(&settings.wallet, &signer, self.replace)?;
        let wallet = &imported.wallet;
        let mut text = match imported.was_there {
            true => format!("{} is the provider's key already", wallet.provider_id()),
            false => format!(
                "the provider is {} now; key: {}",
                wallet.provider_id(),
                described(wallet.origin())
            ),
        };
        for copy in &imported.copies {
            text += &format!("\nThe old key is kept in {}.", copy.display());
        }
        let running = !imported.was_there
            && super::on_runtime(AdminClient::connect(&settings.data_dir))?
                .is_ok_and(|client| client.is_some());
        if running {
            text += "\nThe provider that runs keeps its old key until it is started again.";
        }
        let more = json!({
            "imported": !imported.was_there, "copies": imported.copies, "restart_needed": running,
        });
        say(&self.output, wallet, more, &text)
    }
}

impl Export {
    fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        if let Some(file) = &self.keystore {
            // What would fail anyway is found out before anybody is asked for anything.
            custody::present(&settings.wallet)?;
            let passphrase = match &self.passphrase_file {
                Some(file) => passphrase_in(file)?,
                None => new_passphrase()?,
            };
            let wallet = custody::export_keystore(&settings.wallet, file, &passphrase)?;
            print::print(&format!(
                "the key of {} is in {}, encrypted\n",
                wallet.provider_id(),
                file.display()
            ))?;
            return Ok(Outcome::Done);
        }
        let key = custody::export(&settings.wallet)?;
        if !self.yes && !consent()? {
            return Ok(Outcome::NotAsked);
        }
        print::print(key.expose())?;
        Ok(Outcome::Done)
    }
}

fn consent() -> io::Result<bool> {
    let mut out = io::stderr().lock();
    if !io::stdin().is_terminal() {
        writeln!(
            out,
            "The private key is not printed, since nobody can be asked here. --yes prints it; --keystore FILE writes an encrypted copy."
        )?;
        return Ok(false);
    }
    write!(out, "Whoever sees the private key has the provider's money. Print it? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let yes = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !yes {
        writeln!(out, "Nothing was printed.")?;
    }
    Ok(yes)
}

/// The key in a file, as hex or as a keystore; `-` is standard input. A passphrase is asked for where no file has it.
///
/// # Errors
/// There is no key in it, or it does not open.
pub fn key_in(file: &Path, passphrase_file: Option<&Path>) -> anyhow::Result<PrivateKeySigner> {
    let text = read(file)?;
    let from_stdin = file == Path::new("-");
    custody::read_key::<anyhow::Error>(&text, || match passphrase_file {
        Some(file) => passphrase_in(file),
        None if from_stdin => {
            bail!("name the file with the keystore's passphrase: --passphrase-file")
        }
        None => ask_passphrase("Passphrase of the keystore: "),
    })
    .with_context(|| match from_stdin {
        true => "standard input gives no key".to_owned(),
        false => format!("{} gives no key", file.display()),
    })
}

/// The key that a text is in hex.
///
/// # Errors
/// It is none.
pub fn key_of(text: &Secret) -> anyhow::Result<PrivateKeySigner> {
    custody::read_key(text, || bail!("a keystore has to be in a file"))
}

/// The text of a file, or of standard input, of at most what a keystore takes.
fn read(file: &Path) -> anyhow::Result<Secret> {
    let mut text = String::new();
    let limit = keystore::MAX_FILE_BYTES + 1;
    let read = if file == Path::new("-") {
        if io::stdin().is_terminal() {
            return Ok(Secret::new(secret_line("Private key, in hex: ")?));
        }
        io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        File::open(file).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    match text.len() as u64 == limit {
        true => Err(CustodyError::NoKey.into()),
        false => Ok(Secret::new(text)),
    }
}

fn passphrase_in(file: &Path) -> anyhow::Result<Secret> {
    keystore::read_passphrase(file)
        .with_context(|| format!("cannot use the passphrase in {}", file.display()))
}

fn ask_passphrase(prompt: &str) -> anyhow::Result<Secret> {
    if !io::stdin().is_terminal() {
        bail!(
            "nobody can be asked for a passphrase here: name a file that has it with --passphrase-file"
        );
    }
    Ok(Secret::new(secret_line(prompt)?))
}

fn new_passphrase() -> anyhow::Result<Secret> {
    let one = ask_passphrase("New passphrase: ")?;
    if one.expose().is_empty() {
        bail!("an empty passphrase protects nothing");
    }
    let other = ask_passphrase("The same again: ")?;
    if one != other {
        bail!("the two are different");
    }
    Ok(one)
}

/// Not shown while it is typed.
fn secret_line(prompt: &str) -> anyhow::Result<String> {
    let terminal = console::Term::stderr();
    terminal.write_str(prompt)?;
    terminal.read_secure_line().context("cannot read from the terminal")
}
