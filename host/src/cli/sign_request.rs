//! `sign-request`: the header with which a request counts as its signer's, for scripts. Needs no provider and no settings of one:
//! it is for requestors, with the code that providers check with.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::{
    print,
    wallet::{key_in, key_of},
};
use crate::{
    api::MAX_BODY,
    owners::{self, Address, Asked, Credentials, Nonce, Statement},
    settings::Secret,
};

pub const ABOUT: &str = "\
Signs a request to a provider and prints the header that it has to carry. What a signed request makes belongs to its signer, and \
nobody else can see or change it. The header counts for a minute and once: sign each request anew.

The key is that of the requestor: 64 hex digits or a Web3 keystore in the file that --key-file or GOLEM_REQUESTOR_KEY_FILE names, \
or 64 hex digits in GOLEM_REQUESTOR_KEY. It is never an argument, which every user of the machine could read. The provider's own \
key is not used unless you name its file.";

pub const AFTER: &str = "\
Examples:
  curl http://provider.example:7466/api/v1/vms --data-binary @vm.json \\
    -H \"$(golem-provider sign-request --method POST --path /api/v1/vms --provider 0x… --key-file owner.key --body vm.json)\"
  curl -X DELETE http://provider.example:7466/api/v1/vms/mine \\
    -H \"$(golem-provider sign-request --method DELETE --path /api/v1/vms/mine --provider 0x… --key-file owner.key)\"

docs/requests.md tells what is signed, for other programs.

Exit status: 0 the header was printed, 1 it could not be made, 2 the command line is wrong.";

/// Holds the key itself, in hex.
const KEY_VARIABLE: &str = "GOLEM_REQUESTOR_KEY";

#[derive(Debug, Args)]
pub struct SignRequest {
    /// Of the request, such as POST
    #[arg(long, value_parser = method)]
    method: String,
    /// Of the request, with its query, such as /api/v1/vms?async=true
    #[arg(long, value_parser = path)]
    path: String,
    /// Address of the provider that is asked, as it is listed
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    provider: Address,
    /// Holds the request's body; - for standard input
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// Holds the requestor's key
    #[arg(long, value_name = "FILE", env = "GOLEM_REQUESTOR_KEY_FILE")]
    key_file: Option<PathBuf>,
    /// Holds the passphrase of the keystore that the key is in
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// For programs: the header, its parts and the text that was signed
    #[arg(long)]
    json: bool,
}

fn method(text: &str) -> Result<String, String> {
    match !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        true => Ok(text.to_ascii_uppercase()),
        false => Err("allowed is a method such as GET, POST or DELETE".to_owned()),
    }
}

fn path(text: &str) -> Result<String, String> {
    let allowed = text.starts_with('/')
        && !text.contains('#')
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    match allowed {
        true => Ok(text.to_owned()),
        false => Err(
            "allowed is what stands in the request behind host and port: it begins with /, and has no spaces, no # and nothing \
             that would have to be written as %"
                .to_owned(),
        ),
    }
}

fn address(text: &str) -> Result<Address, String> {
    owners::address(text)
        .ok_or_else(|| "allowed is 0x and 40 hex digits, with a right checksum or none".to_owned())
}

impl SignRequest {
    /// # Errors
    /// There is no key, or it or the body cannot be read.
    pub fn run(&self) -> anyhow::Result<()> {
        let stdin = Some(Path::new("-"));
        if self.body.as_deref() == stdin && self.key_file.as_deref() == stdin {
            bail!("key and body cannot both come from standard input");
        }
        let signer = match (&self.key_file, std::env::var(KEY_VARIABLE)) {
            (Some(file), _) => key_in(file, self.passphrase_file.as_deref())?,
            (None, Ok(key)) => {
                key_of(&Secret::new(key)).with_context(|| format!("{KEY_VARIABLE} gives no key"))?
            }
            (None, Err(_)) => bail!(
                "no key to sign with: name the file that it is in with --key-file or GOLEM_REQUESTOR_KEY_FILE, or set {KEY_VARIABLE}"
            ),
        };
        let body = self.body.as_deref().map(read_body).transpose()?.unwrap_or_default();
        let timestamp = u64::try_from(Timestamp::now().as_second())
            .context("the clock of this computer is before 1970")?;
        let asked = Asked::new(&self.method, &self.path, &body);
        let signed = Credentials::sign(&signer, self.provider, asked, timestamp, Nonce::random())
            .context("cannot sign")?;
        if !self.json {
            print::print(&format!("Authorization: {signed}\n"))?;
            return Ok(());
        }
        let statement =
            Statement { provider: self.provider, asked, timestamp, nonce: &signed.nonce };
        print::print_json(&json!({
            "authorization": signed.to_string(),
            "address": signed.address.to_checksum(None),
            "signature": signed.signature.to_string(),
            "timestamp": timestamp,
            "nonce": signed.nonce.as_str(),
            "text": statement.to_string(),
        }))
    }
}

fn read_body(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    let limit = MAX_BODY as u64 + 1;
    let read = match file == Path::new("-") {
        true => io::stdin().lock().take(limit).read_to_end(&mut body),
        false => File::open(file).and_then(|file| file.take(limit).read_to_end(&mut body)),
    };
    read.with_context(|| format!("cannot read the body {}", file.display()))?;
    if body.len() > MAX_BODY {
        bail!("the body is longer than the {} KiB that providers read", MAX_BODY / 1024);
    }
    Ok(body)
}
