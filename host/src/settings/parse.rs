//! Readers of single values: from a text to a type, or a phrase that says what is allowed.
//!
//! They are pure. A refusal is worded to follow "allowed is", so that every error about a value reads the same, and never
//! repeats the value, which may be a secret.

use std::{fmt, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::{Environment, Secret};

/// The value, or what is allowed.
pub type Parsed<T> = Result<T, String>;

/// Where requestors reach this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicIp {
    /// To be found out.
    Auto,
    Fixed(IpAddr),
}

/// From which origins browsers may call the API. Never with credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigins {
    Any,
    /// Only these; an empty list forbids all.
    Only(Vec<String>),
}

/// How many port-check servers have to say the same of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortQuorum {
    /// More than half of those that answered.
    Majority,
    /// So many, however many answered. Never 0.
    AtLeast(u32),
}

/// What is done with ports that nobody could check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnverifiedPorts {
    /// The provider runs, says so, is not advertised and gives them to no new VM.
    Warn,
    /// The provider does not start.
    Refuse,
    /// They count as reachable.
    Trust,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Human,
    Json,
}

pub fn text(text: &str) -> Parsed<String> {
    match text.chars().any(char::is_control) {
        true => Err("one line of text without control characters".into()),
        false => Ok(text.to_owned()),
    }
}

pub fn secret(text: &str) -> Parsed<Secret> {
    Ok(Secret::new(text))
}

/// 32 bytes in hex.
pub fn private_key(text: &str) -> Parsed<Secret> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    match digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(Secret::new(digits)),
        false => Err("64 hex digits, with or without 0x before them".into()),
    }
}

/// `~/` at the beginning is resolved by `resolve`, which knows the home directory.
pub fn path(text: &str) -> Parsed<PathBuf> {
    Ok(PathBuf::from(text))
}

pub fn flag(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("true or false".into()),
    }
}

/// A whole number between `MIN` and `MAX`, both included.
pub fn whole<T: TryFrom<u64>, const MIN: u64, const MAX: u64>(text: &str) -> Parsed<T> {
    text.parse::<u64>()
        .ok()
        .filter(|n| (MIN..=MAX).contains(n))
        .and_then(|n| T::try_from(n).ok())
        .ok_or_else(|| match MAX {
            u64::MAX => format!("a whole number of at least {MIN}"),
            _ => format!("a whole number from {MIN} to {MAX}"),
        })
}

/// An amount in wei, which may exceed 64 bits.
pub fn wei(text: &str) -> Parsed<u128> {
    text.parse().map_err(|_| "a whole number of wei".into())
}

/// The largest price, in any currency, and the number of its digits after the point: what is computed from such numbers
/// neither overflows nor vanishes.
const MAX_AMOUNT: Decimal = Decimal::from_parts(1_000_000, 0, 0, false, 0);
const MAX_AMOUNT_SCALE: u32 = 9;

/// A price, exactly as it is written.
pub fn amount(text: &str) -> Parsed<Decimal> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = Decimal::from_str_exact(text).ok().filter(|number| {
        plain && *number <= MAX_AMOUNT && number.normalize().scale() <= MAX_AMOUNT_SCALE
    });
    number.ok_or_else(|| {
        format!("a number from 0 to {MAX_AMOUNT} with at most {MAX_AMOUNT_SCALE} digits after the point, such as 5.0")
    })
}

pub fn ip(text: &str) -> Parsed<IpAddr> {
    text.parse().map_err(|_| "an IP address, such as 0.0.0.0 or 127.0.0.1".into())
}

pub fn public_ip(text: &str) -> Parsed<PublicIp> {
    match text {
        "auto" => Ok(PublicIp::Auto),
        _ => match text.parse::<IpAddr>() {
            Ok(address) if !address.is_unspecified() => Ok(PublicIp::Fixed(address)),
            _ => Err("`auto` or the IP address at which requestors reach this machine".into()),
        },
    }
}

pub fn port_quorum(text: &str) -> Parsed<PortQuorum> {
    match (text, text.parse()) {
        ("majority", _) => Ok(PortQuorum::Majority),
        (_, Ok(servers @ 1..=100)) => Ok(PortQuorum::AtLeast(servers)),
        _ => Err("`majority`, or a number of servers from 1 to 100".into()),
    }
}

pub fn unverified_ports(text: &str) -> Parsed<UnverifiedPorts> {
    one_of(
        text,
        &[
            ("warn", UnverifiedPorts::Warn),
            ("refuse", UnverifiedPorts::Refuse),
            ("trust", UnverifiedPorts::Trust),
        ],
    )
}

pub fn country(text: &str) -> Parsed<String> {
    match text.len() == 2 && text.bytes().all(|b| b.is_ascii_alphabetic()) {
        true => Ok(text.to_ascii_uppercase()),
        false => Err("a country code of two letters, such as SE".into()),
    }
}

/// An Ethereum address; its checksum is not looked at.
pub fn address(text: &str) -> Parsed<String> {
    let digits = text.strip_prefix("0x").unwrap_or_default();
    match digits.len() == 40 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(text.to_owned()),
        false => Err("an Ethereum address: 0x and 40 hex digits".into()),
    }
}

pub fn http_url(text: &str) -> Parsed<String> {
    url(text, &["http", "https"])
}

pub fn ws_url(text: &str) -> Parsed<String> {
    url(text, &["ws", "wss"])
}

fn url(text: &str, schemes: &[&str]) -> Parsed<String> {
    let parsed = reqwest::Url::parse(text).ok();
    match parsed.filter(|url| {
        schemes.contains(&url.scheme()) && url.host_str().is_some_and(|host| !host.is_empty())
    }) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("a URL that begins with {}://", schemes.join(":// or "))),
    }
}

/// A JSON array of texts, or texts between commas.
pub fn list(text: &str) -> Parsed<Vec<String>> {
    let text = text.trim();
    if text.starts_with('[') {
        return serde_json::from_str(text)
            .map_err(|_| "a JSON list of texts, such as [\"a\", \"b\"], or a,b".into());
    }
    Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
}

pub fn http_urls(text: &str) -> Parsed<Vec<String>> {
    let urls = list(text)?;
    let checked = urls.iter().map(|item| http_url(item)).collect::<Parsed<Vec<_>>>();
    checked.map_err(|allowed| format!("a list of which each is {allowed}"))
}

/// Networks, or single addresses.
pub fn networks(text: &str) -> Parsed<Vec<IpNet>> {
    let network =
        |item: &String| item.parse::<IpNet>().or_else(|_| item.parse::<IpAddr>().map(IpNet::from));
    list(text)?
        .iter()
        .map(|item| {
            network(item).map_err(|_| {
                "a list of addresses or networks, such as 10.0.0.1,192.168.0.0/16".to_owned()
            })
        })
        .collect()
}

pub fn cors_origins(text: &str) -> Parsed<CorsOrigins> {
    let refusal =
        || "`*` for any, `none`, or a list of origins such as https://dashboard.example".to_owned();
    let origins = match text.trim() {
        "*" => return Ok(CorsOrigins::Any),
        "none" => return Ok(CorsOrigins::Only(Vec::new())),
        other => list(other)?,
    };
    // An origin is scheme, host and port; with a path or a slash at the end a browser's header would never equal it.
    let exact = |origin: &String| {
        reqwest::Url::parse(origin)
            .is_ok_and(|url| url.origin().ascii_serialization() == *origin && url.host().is_some())
    };
    match origins.iter().all(exact) {
        true => Ok(CorsOrigins::Only(origins)),
        false => Err(refusal()),
    }
}

pub fn environment(text: &str) -> Parsed<Environment> {
    one_of(
        text,
        &[("production", Environment::Production), ("development", Environment::Development)],
    )
}

pub fn log_format(text: &str) -> Parsed<LogFormat> {
    one_of(text, &[("human", LogFormat::Human), ("json", LogFormat::Json)])
}

pub fn log_filter(text: &str) -> Parsed<String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("a level (error, warn, info, debug, trace) or a filter such as info,golem_provider::proxy=debug".into()),
    }
}

pub fn network(text: &str) -> Parsed<String> {
    word(text, &["mainnet", "testnet", "development"])
}

/// Names of plugins, of which two have other names in old files.
pub fn advertisers(text: &str) -> Parsed<Vec<String>> {
    let named = |name: &String| -> Parsed<Vec<String>> {
        Ok(match name.as_str() {
            "golem_base" => vec!["golem-base".into()],
            "discovery_server" => vec!["discovery-server".into()],
            "both" => vec!["discovery-server".into(), "golem-base".into()],
            name => vec![plugin_name(name).map_err(|_| {
                "golem_base, discovery_server, both, or a list of plugins' names".to_owned()
            })?],
        })
    };
    let names: Vec<Vec<String>> = list(text)?.iter().map(named).collect::<Result<_, _>>()?;
    Ok(names.concat())
}

/// The name of a plugin.
pub fn plugin_name(text: &str) -> Parsed<String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match !text.is_empty() && text.bytes().all(fits) {
        true => Ok(text.to_owned()),
        false => {
            Err("the name of a plugin: lower-case letters, digits and dashes, such as qemu".into())
        }
    }
}

fn word(text: &str, allowed: &[&str]) -> Parsed<String> {
    match allowed.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("one of {}", allowed.join(", "))),
    }
}

fn one_of<T: Copy>(text: &str, allowed: &[(&str, T)]) -> Parsed<T> {
    let names = || allowed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    allowed
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("one of {}", names()))
}

/// How a value is shown to people; it can be read again by the reader of its key.
pub trait Show {
    fn show(&self) -> String;
}

macro_rules! show_by_display {
    ($($type:ty),*) => { $(impl Show for $type { fn show(&self) -> String { self.to_string() } })* };
}
show_by_display!(String, Decimal, bool, u8, u16, u32, u64, u128, usize, IpAddr, LogFormat, Secret);

impl Show for PathBuf {
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Show for Vec<String> {
    fn show(&self) -> String {
        self.join(",")
    }
}

impl Show for Vec<IpNet> {
    fn show(&self) -> String {
        self.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",")
    }
}

impl Show for PublicIp {
    fn show(&self) -> String {
        match self {
            Self::Auto => "auto".into(),
            Self::Fixed(address) => address.to_string(),
        }
    }
}

impl Show for PortQuorum {
    fn show(&self) -> String {
        match self {
            Self::Majority => "majority".into(),
            Self::AtLeast(servers) => servers.to_string(),
        }
    }
}

impl Show for UnverifiedPorts {
    fn show(&self) -> String {
        match self {
            Self::Warn => "warn",
            Self::Refuse => "refuse",
            Self::Trust => "trust",
        }
        .into()
    }
}

impl Show for CorsOrigins {
    fn show(&self) -> String {
        match self {
            Self::Any => "*".into(),
            Self::Only(origins) if origins.is_empty() => "none".into(),
            Self::Only(origins) => origins.join(","),
        }
    }
}

impl Show for Environment {
    fn show(&self) -> String {
        self.as_str().into()
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}
