//! What the operator decides: environment, `.env` files and command line, made into one typed and checked [`Settings`].
//!
//! The way of a value: `sources` collects texts (the environment wins over `.env` in the working directory, that over `.env`
//! in the data directory), `keys` says which keys exist and what each may hold, `resolve` checks everything, reports all
//! problems at once and builds the typed value. `parse` holds the readers of single values, `dotenv` the file format,
//! `public_ip` finds the address of this machine.
//!
//! Nothing here starts or connects anything, and only `write` writes: one key of one file, for commands that set something. The rest of the provider takes its settings from [`Settings`] and never
//! looks at the environment itself. This module calls no other module of the provider.

pub mod keys;
pub mod public_ip;

mod dotenv;
mod error;
mod parse;
mod resolve;
mod secret;
mod sources;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Range,
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

pub use error::SettingsError;
pub use parse::{CorsOrigins, LogFormat, PortQuorum, PublicIp, UnverifiedPorts, amount};
pub use resolve::resolve;
pub use secret::Secret;
pub use sources::{Inputs, Origin};
pub use write::write_setting;

/// Everything the operator decided, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    pub environment: Environment,
    /// Where the provider keeps what has to last.
    pub data_dir: PathBuf,
    /// Where backends keep disks and images; `None` leaves it to the data directory.
    pub vm_data_dir: Option<PathBuf>,
    /// Where plugins are looked for besides the bundled ones.
    pub plugin_dir: PathBuf,
    /// The backend that new VMs are made with; `None` takes the first bundled one that can work here.
    pub vm_backend: Option<String>,
    pub api: ApiSettings,
    pub identity: IdentitySettings,
    pub wallet: WalletSettings,
    pub ports: PortSettings,
    pub reachability: ReachabilitySettings,
    pub vms: VmSettings,
    pub resources: ResourceSettings,
    pub pricing: PricingSettings,
    pub discovery: DiscoverySettings,
    pub chains: ChainSettings,
    pub payments: PaymentSettings,
    pub faucets: FaucetSettings,
    pub log: LogSettings,
    /// What was set as `GOLEM_PROVIDER_PLUGIN_<NAME>_<KEY>`: by plugin name, then by key (lower case, `-` for `_`), untouched.
    pub plugins: BTreeMap<String, BTreeMap<String, String>>,
    /// What the operator should know, although it stops nothing.
    pub warnings: Vec<String>,
    /// Every key with its value as it may be shown, in the order of [`keys::ALL`], plugin settings last.
    pub effective: Vec<EffectiveKey>,
}

impl Settings {
    /// Where backends keep disks and images.
    pub fn vm_data_dir(&self) -> PathBuf {
        self.vm_data_dir.clone().unwrap_or_else(|| self.data_dir.join("vms"))
    }
}

/// What kind of node this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// Offers machines to the network.
    Production,
    /// For trying things out: listens on loopback, advertises nothing, takes no payments, verifies no ports.
    Development,
}

impl Environment {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Development => "development",
        }
    }
}

#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// Where the API listens.
    pub bind: SocketAddr,
    /// Requests a minute that one client address may make; 0 lifts the limit.
    pub rate_limit_per_minute: u32,
    /// Whether VMs are made only for requests that are signed.
    pub require_signed_requests: bool,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// From which origins browsers may call the API.
    pub cors_origins: CorsOrigins,
}

#[derive(Debug, Clone)]
pub struct IdentitySettings {
    /// The provider's name in listings.
    pub name: String,
    /// ISO 3166 alpha-2, upper case.
    pub country: Option<String>,
    /// Where requestors reach this machine, as far as that is known without asking anyone.
    pub public_ip: Option<IpAddr>,
}

#[derive(Debug, Clone)]
pub struct WalletSettings {
    /// Where the key is kept, and made at the first start, when no `private_key` is set.
    pub key_dir: PathBuf,
    pub private_key: Option<Secret>,
    /// Holds the passphrase that the key in `key_dir` is encrypted with; `None` keeps it as it is.
    pub passphrase_file: Option<PathBuf>,
}

/// How the chains that money is on are reached.
#[derive(Debug, Clone)]
pub struct ChainSettings {
    /// JSON-RPC servers to ask in turn, by the name of the chain: `golem-base` is advertised on, `payments` is paid on. A chain
    /// without any is not there.
    pub nodes: BTreeMap<String, Vec<Secret>>,
    /// No transaction is sent that pays more for a unit of gas.
    pub max_gas_price_wei: u128,
    /// The contract of the GLM token there; `None` where payments are in the chain's own coin.
    pub glm_token: Option<String>,
}

/// How machines are paid for.
#[derive(Debug, Clone)]
pub struct PaymentSettings {
    /// The plugin that reads payments; `None`: none are taken. Never any in development.
    pub verifier: Option<String>,
    /// The contract of the streams, as requestors are told; `None` where there is none.
    pub contract: Option<String>,
    /// Blocks a stream must be in before it counts, its own included: 1 is the newest.
    pub confirmations: u32,
    /// A machine is stopped when its stream has less left than this.
    pub min_remaining: Duration,
    /// What a new stream may lack of the usual deposit of an hour.
    pub create_grace: Duration,
    /// How long a machine that nobody pays for is kept, stopped.
    pub retention: Duration,
    /// How long a price counts for requestors after it rose: for as long as they may be shown it.
    pub price_memory: Duration,
    pub monitor: StreamMonitorSettings,
    pub withdrawals: WithdrawalSettings,
}

/// Whether machines that nobody pays for are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamMonitorSettings {
    pub enabled: bool,
    pub interval: Duration,
}

/// Whether what was earned is collected by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WithdrawalSettings {
    pub enabled: bool,
    /// Of one stream, nothing is collected sooner than this after the last time.
    pub interval: Duration,
    /// Smaller amounts wait.
    pub min_wei: u128,
}

/// Where test money comes from.
#[derive(Debug, Clone)]
pub struct FaucetSettings {
    /// For the chain that is advertised on.
    pub golem_base_url: Option<String>,
    /// For the chain that is paid on.
    pub payments_url: Option<String>,
    pub captcha_url: Option<String>,
    pub captcha_api_key: Option<Secret>,
}

#[derive(Debug, Clone)]
pub struct PortSettings {
    /// Ports for SSH to VMs, half-open. Never empty.
    pub range: Range<u16>,
    /// Address on which those ports listen.
    pub bind: IpAddr,
    /// Connections that one VM's port serves at the same time.
    pub max_connections_per_vm: usize,
}

/// How it is found out where this machine is reached, and whether.
#[derive(Debug, Clone)]
pub struct ReachabilitySettings {
    pub verification: Verification,
    /// Port-check servers, as base URLs.
    pub servers: Vec<String>,
    pub quorum: PortQuorum,
    /// From one check to the next, as long as nothing is wrong.
    pub interval: Duration,
    pub unverified_ports: UnverifiedPorts,
    /// How many other providers are asked beside the servers.
    pub peers: u32,
    /// Whether ports are checked for other providers.
    pub serve_peers: bool,
    /// As it was set; `identity` has what that means without asking anyone.
    pub public_ip: PublicIp,
    /// Who is asked for the public address where none is set. Nobody in development.
    pub public_ip_sources: Vec<String>,
}

/// Whether ports are checked from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    Wanted,
    /// The operator said that they need not be.
    Skipped,
    /// There is no outside in development.
    Development,
}

#[derive(Debug, Clone)]
pub struct VmSettings {
    /// The image of a request that names none.
    pub default_image: String,
    pub max_vms: u32,
    /// Whether VMs end with the provider.
    pub stop_on_exit: bool,
    /// How long making a VM may take once its image is there.
    pub launch_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct ResourceSettings {
    /// At least this much of each must be free for the provider to offer machines.
    pub min_cpu_cores: u32,
    pub min_memory_gb: u32,
    pub min_storage_gb: u32,
    /// The share of the machine that VMs may hold, 1 to 100.
    pub cpu_threshold_percent: u8,
    pub memory_threshold_percent: u8,
    pub storage_threshold_percent: u8,
}

/// What is charged, and where the price of GLM comes from.
#[derive(Debug, Clone)]
pub struct PricingSettings {
    /// In USD. Each is at most a million and has at most nine digits after the point.
    pub usd: MonthlyPrices,
    /// Whom to ask for the price of GLM; `None`: nobody.
    pub source: Option<PriceSourceSettings>,
    /// Changes of the price of GLM that are smaller change nothing.
    pub min_delta_percent: Decimal,
}

/// Prices a month, all in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonthlyPrices {
    #[serde(with = "rust_decimal::serde::str")]
    pub per_core: Decimal,
    #[serde(with = "rust_decimal::serde::str")]
    pub per_gb_ram: Decimal,
    #[serde(with = "rust_decimal::serde::str")]
    pub per_gb_storage: Decimal,
}

/// A server that answers as CoinGecko does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceSourceSettings {
    /// Without what comes after the version of the API.
    pub url: String,
    /// Names of GLM there, the best one first.
    pub ids: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct DiscoverySettings {
    /// Plugins that list this provider.
    pub advertisers: BTreeSet<String>,
    /// What requestors filter by: `mainnet`, `testnet` or `development`.
    pub network: String,
    /// The chain that is paid on, as requestors call it.
    pub payments_network: String,
}

#[derive(Debug, Clone)]
pub struct LogSettings {
    pub format: LogFormat,
    /// Which lines are written, in the syntax of `tracing-subscriber`'s `EnvFilter`.
    pub filter: String,
    /// Where lines go; absent for standard error.
    pub file: Option<PathBuf>,
}

/// What the command line says about settings; it wins over everything else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `golem-provider dev`.
    pub development: bool,
    /// `--stop-vms-on-exit`, `--keep-vms-on-exit`.
    pub stop_vms_on_exit: Option<bool>,
    /// `--no-verify-port`.
    pub skip_port_verification: bool,
}

/// One key as `config show` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EffectiveKey {
    pub key: String,
    /// `None`: not set, and without a default. Secrets are hidden.
    pub value: Option<String>,
    pub origin: Origin,
}

/// Reads the environment and the `.env` files of this process.
///
/// # Errors
/// Everything that is wrong with any key, all at once.
pub fn load(overrides: &Overrides) -> Result<Settings, SettingsError> {
    resolve(&Inputs::of_this_process(), overrides)
}
