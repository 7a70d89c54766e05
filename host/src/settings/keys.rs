//! Every key an operator can set: its name, what it may hold, its default and what it is for.
//!
//! This table is the one place that knows the keys. A key that is not in it is a misspelling and refused; help, `config show`
//! and checks are all made from it. Keys of features that are still to come are in it too, so that an operator's file
//! is read whole, and checked whole, from the first day.
//!
//! Names are without the prefix `GOLEM_PROVIDER_`, but for `GOLEM_ENVIRONMENT`, which is written out.

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use rust_decimal::Decimal;

use super::{
    Environment, Secret,
    parse::{self, CorsOrigins, LogFormat, Parsed, PortQuorum, PublicIp, Show, UnverifiedPorts},
};

/// What all keys but [`ENVIRONMENT`] begin with.
pub const PREFIX: &str = "GOLEM_PROVIDER_";

/// What the keys of plugins begin with: `GOLEM_PROVIDER_PLUGIN_<NAME>_<KEY>`.
pub const PLUGIN_PREFIX: &str = "GOLEM_PROVIDER_PLUGIN_";

/// What is the same for every key, whatever its type.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// With its prefix, as it is set.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// Whether its value may never be shown.
    pub secret: bool,
    /// Whether the feature that reads it is still to come.
    pub later: bool,
}

/// A key whose value, or default, is a `T`.
pub struct Key<T> {
    pub description: Description,
    pub(super) parse: fn(&str) -> Parsed<T>,
    pub(super) default: fn() -> T,
}

/// A key without a default.
pub struct OptionalKey<T> {
    pub description: Description,
    pub(super) parse: fn(&str) -> Parsed<T>,
}

/// A key without its type, as the table lists it.
pub trait AnyKey: Sync {
    fn description(&self) -> Description;

    /// The value as it may be shown, or what is allowed.
    fn check(&self, text: &str) -> Parsed<String>;

    /// As it may be shown.
    fn default(&self) -> Option<String>;
}

impl<T: Show + 'static> AnyKey for Key<T> {
    fn description(&self) -> Description {
        self.description
    }

    fn check(&self, text: &str) -> Parsed<String> {
        (self.parse)(text).map(|value| value.show())
    }

    fn default(&self) -> Option<String> {
        Some((self.default)().show())
    }
}

impl<T: Show + 'static> AnyKey for OptionalKey<T> {
    fn description(&self) -> Description {
        self.description
    }

    fn check(&self, text: &str) -> Parsed<String> {
        (self.parse)(text).map(|value| value.show())
    }

    fn default(&self) -> Option<String> {
        None
    }
}

/// Declares keys, and the table of all of them in the same order.
macro_rules! keys {
    ($($(#[$attribute:ident])* $name:ident : $type:ty $(= $default:expr)?, $parse:expr, $about:literal;)*) => {
        $(keys!(@one [$($attribute)*] $name, $type, ($($default)?), $parse, $about);)*

        /// Every key, in the order in which people are shown them.
        pub static ALL: &[&dyn AnyKey] = &[$(&$name),*];
    };
    (@one [$($attribute:ident)*] $name:ident, $type:ty, ($default:expr), $parse:expr, $about:literal) => {
        pub static $name: Key<$type> = Key {
            description: keys!(@describe [$($attribute)*] $name, $about), parse: $parse, default: || $default,
        };
    };
    (@one [$($attribute:ident)*] $name:ident, $type:ty, (), $parse:expr, $about:literal) => {
        pub static $name: OptionalKey<$type> = OptionalKey {
            description: keys!(@describe [$($attribute)*] $name, $about), parse: $parse,
        };
    };
    (@describe [$($attribute:ident)*] ENVIRONMENT, $about:literal) => {
        Description { name: "GOLEM_ENVIRONMENT", about: $about, secret: false, later: false }
    };
    (@describe [$($attribute:ident)*] $name:ident, $about:literal) => {
        Description {
            name: concat!("GOLEM_PROVIDER_", stringify!($name)),
            about: $about,
            secret: keys!(@has secret $($attribute)*),
            later: keys!(@has later $($attribute)*),
        }
    };
    (@has secret secret $($rest:ident)*) => { true };
    (@has later later $($rest:ident)*) => { true };
    (@has $what:ident $other:ident $($rest:ident)*) => { keys!(@has $what $($rest)*) };
    (@has $what:ident) => { false };
}

/// The address of a contract that is not there.
pub const NO_ADDRESS: &str = "0x0000000000000000000000000000000000000000";

keys! {
    ENVIRONMENT: Environment = Environment::Production, parse::environment, "production or development";
    DATA_DIR: PathBuf = PathBuf::from("~/.golem/provider"), parse::path, "where the provider keeps what has to last";
    HOST: IpAddr, parse::ip, "address that API and SSH ports listen on (0.0.0.0; 127.0.0.1 in development)";
    PORT: u16 = 7466, parse::whole::<u16, 1, 65535>, "port of the API";
    LOG: String = "info".into(), parse::log_filter, "log level or filter; RUST_LOG is read too";
    LOG_FORMAT: LogFormat = LogFormat::Human, parse::log_format, "human or json";
    NAME: String = "golem-provider".into(), parse::text, "the provider's name in listings";
    COUNTRY: String, parse::country, "two letters, such as SE";
    PUBLIC_IP: PublicIp = PublicIp::Auto, parse::public_ip, "where requestors reach this machine, or auto";
    ID: String, parse::text, "kept for old files; the id is the address of the Ethereum key";
    #[secret] ETHEREUM_PRIVATE_KEY: Secret, parse::private_key, "the provider's key, in hex";
    ETHEREUM_KEY_DIR: PathBuf, parse::path, "where the key is kept when none is set (<data dir>/keys)";
    ETHEREUM_KEYSTORE_PASSPHRASE_FILE: PathBuf, parse::path, "file with the passphrase that the key is encrypted with; none: not encrypted";

    VM_BACKEND: String, parse::plugin_name, "plugin that makes new VMs (default: the first bundled one that works here)";
    PLUGIN_DIR: PathBuf, parse::path, "where plugins are looked for (<data dir>/plugins)";
    VM_DATA_DIR: PathBuf, parse::path, "where disks and images are kept (default: the data directory)";
    DEFAULT_VM_IMAGE: String = "24.04".into(), parse::text, "image of a VM that names none";
    LAUNCH_TIMEOUT_SECONDS: u64 = 300, parse::whole::<u64, 10, 86400>, "how long a VM may take to boot";
    STOP_VMS_ON_EXIT: bool = false, parse::flag, "whether VMs are stopped with the provider";
    MAX_VMS: u32 = 10, parse::whole::<u32, 0, 10000>, "VMs at the same time";
    MIN_CPU_CORES: u32 = 1, parse::whole::<u32, 0, 1024>, "cores that must be free to offer VMs";
    MIN_MEMORY_GB: u32 = 1, parse::whole::<u32, 0, 65536>, "memory that must be free to offer VMs";
    MIN_STORAGE_GB: u32 = 10, parse::whole::<u32, 0, 1048576>, "storage that must be free to offer VMs";
    CPU_THRESHOLD: u8 = 90, parse::whole::<u8, 1, 100>, "percent of the cores that VMs may hold";
    MEMORY_THRESHOLD: u8 = 85, parse::whole::<u8, 1, 100>, "percent of the memory that VMs may hold";
    STORAGE_THRESHOLD: u8 = 90, parse::whole::<u8, 1, 100>, "percent of the storage that VMs may hold";

    PORT_RANGE_START: u16 = 50800, parse::whole::<u16, 1, 65535>, "first port for SSH to VMs";
    PORT_RANGE_END: u16 = 50900, parse::whole::<u16, 1, 65535>, "the port after the last one for SSH to VMs";
    MAX_CONNECTIONS_PER_VM: usize = 64, parse::whole::<usize, 1, 100_000>, "connections to one VM at the same time";
    RATE_LIMIT_PER_MINUTE: u32 = 100, parse::whole::<u32, 0, 1_000_000>, "API requests per client address; 0 for no limit";
    REQUIRE_SIGNED_REQUESTS: bool = false, parse::flag, "make VMs only for signed requests, so that each has an owner";
    TRUSTED_PROXIES: Vec<IpNet> = Vec::new(), parse::networks, "whose X-Forwarded-For is believed";
    CORS_ORIGINS: CorsOrigins = CorsOrigins::Any, parse::cors_origins, "web pages that may call the API: *, none or a list";

    SKIP_PORT_VERIFICATION: bool = false, parse::flag, "do not ask others whether the ports can be reached";
    PORT_CHECK_SERVERS: Vec<String> = vec!["https://ports1.golem.network".into(), "https://ports2.golem.network".into()],
        parse::http_urls, "servers that check ports from outside";
    PORT_CHECK_QUORUM: PortQuorum = PortQuorum::Majority, parse::port_quorum, "servers that have to agree: majority of those that answer, or a number";
    PORT_CHECK_INTERVAL_SECONDS: u64 = 3600, parse::whole::<u64, 5, 86400>, "seconds between two checks of the ports";
    UNVERIFIED_PORTS: UnverifiedPorts = UnverifiedPorts::Warn, parse::unverified_ports, "when nobody could check the ports: warn, refuse or trust";
    PORT_CHECK_PEERS: u32 = 0, parse::whole::<u32, 0, 16>, "other providers that are asked to check the ports too";
    PORT_CHECK_PEERS_ENABLED: bool = false, parse::flag, "check ports for other providers";
    PUBLIC_IP_SOURCES: Vec<String> = vec!["https://api.ipify.org?format=json".into(), "https://ipv4.icanhazip.com".into(),
        "https://checkip.amazonaws.com".into()], parse::http_urls, "who is asked for this machine's public address";
    NETWORK: String = "mainnet".into(), parse::network, "mainnet, testnet or development";
    PAYMENTS_NETWORK: String = "l2.holesky".into(), parse::text, "name of the chain that is paid on";
    ADVERTISER_TYPE: Vec<String>, parse::advertisers, "golem_base, discovery_server, both, or a list of plugins (default: those with a URL)";
    DISCOVERY_URL: String = "http://discovery.golem.network:9001".into(), parse::http_url, "discovery server";
    ADVERTISEMENT_INTERVAL: u64 = 240, parse::whole::<u64, 1, 86400>, "seconds between advertisements";
    DISCOVERY_ADVERTISEMENT_INTERVAL: u64 = 240, parse::whole::<u64, 1, 86400>, "the same, discovery server alone";
    GOLEM_BASE_ADVERTISEMENT_INTERVAL: u64 = 3600, parse::whole::<u64, 1, 2_592_000>, "the same, Golem Base alone";
    #[secret] GOLEM_BASE_RPC_URL: Vec<String>, parse::http_urls, "JSON-RPC of Golem Base; several are asked in turn";
    #[later] GOLEM_BASE_WS_URL: String, parse::ws_url, "WebSocket of Golem Base";

    PRICE_USD_PER_CORE_MONTH: Decimal = Decimal::new(50, 1), parse::amount, "price of a core in USD a month";
    PRICE_USD_PER_GB_RAM_MONTH: Decimal = Decimal::new(20, 1), parse::amount, "price of a GB of memory in USD a month";
    PRICE_USD_PER_GB_STORAGE_MONTH: Decimal = Decimal::new(1, 1), parse::amount, "price of a GB of storage in USD a month";
    COINGECKO_API_URL: String = "https://api.coingecko.com/api/v3".into(), parse::http_url, "where the price of GLM is asked";
    COINGECKO_IDS: Vec<String> = vec!["golem".into(), "golem-network-tokens".into()], parse::list, "names of GLM there, the best one first";
    PRICING_UPDATE_ENABLED: bool = true, parse::flag, "ask for the price of GLM (in development only where COINGECKO_API_URL is set)";
    PRICING_UPDATE_MIN_DELTA_PERCENT: Decimal = Decimal::new(10, 1), parse::amount, "changes of the price of GLM that are smaller change nothing";
    PRICING_UPDATE_INTERVAL_DISCOVERY: u64 = 900, parse::whole::<u64, 1, 2_592_000>, "seconds between price updates";
    PRICING_UPDATE_INTERVAL_GOLEM_BASE: u64 = 14400, parse::whole::<u64, 1, 2_592_000>, "the same for Golem Base";

    #[secret] POLYGON_RPC_URL: Vec<String>, parse::http_urls, "JSON-RPC of the chain that is paid on; several are asked in turn";
    MAX_GAS_PRICE_GWEI: Decimal = Decimal::new(200, 0), parse::amount, "no transaction pays more for a unit of gas, on any chain";
    STREAM_PAYMENT_ADDRESS: String = NO_ADDRESS.into(), parse::address, "contract of the payment streams; zero for none";
    GLM_TOKEN_ADDRESS: String = NO_ADDRESS.into(), parse::address, "contract of the GLM token";
    PAYMENT_VERIFIER: String, parse::plugin_name, "plugin that reads payments (stream-payment where STREAM_PAYMENT_ADDRESS is set)";
    STREAM_CONFIRMATIONS: u32 = 1, parse::whole::<u32, 1, 1000>, "blocks a stream must be in before it counts, its own included";
    STREAM_MIN_REMAINING_SECONDS: u64 = 3600, parse::whole::<u64, 0, {u64::MAX}>, "runway a stream must have";
    STREAM_CREATE_GRACE_SECONDS: u64 = 300, parse::whole::<u64, 0, 86400>, "what a new stream may lack of an hour";
    STREAM_RETENTION_SECONDS: u64 = 86400, parse::whole::<u64, 0, {u64::MAX}>, "how long an unpaid VM is kept, stopped";
    STREAM_MONITOR_ENABLED: bool = false, parse::flag, "stop VMs whose stream runs out";
    STREAM_MONITOR_INTERVAL_SECONDS: u64 = 60, parse::whole::<u64, 1, 86400>, "seconds between looks at the streams";
    STREAM_WITHDRAW_ENABLED: bool = false, parse::flag, "withdraw what was earned from time to time";
    STREAM_WITHDRAW_INTERVAL_SECONDS: u64 = 1800, parse::whole::<u64, 1, 2_592_000>, "seconds between withdrawals";
    STREAM_MIN_WITHDRAW_WEI: u128 = 0, parse::wei, "the smallest amount that is withdrawn";

    FAUCET_URL: String, parse::http_url, "faucet of the testnet that is advertised on";
    L2_FAUCET_URL: String, parse::http_url, "faucet of the testnet that is paid on";
    CAPTCHA_URL: String, parse::http_url, "captcha server of the faucets";
    #[secret] CAPTCHA_API_KEY: Secret, parse::secret, "key of the captcha server";
    MULTIPASS_BINARY_PATH: PathBuf, parse::path, "the multipass program; the same as PLUGIN_MULTIPASS_BINARY_PATH";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_default_is_a_value_that_its_key_accepts() {
        for key in ALL {
            if let Some(default) = key.default().filter(|text| !text.is_empty()) {
                assert_eq!(
                    key.check(&default).as_ref(),
                    Ok(&default),
                    "{}",
                    key.description().name
                );
            }
        }
    }

    #[test]
    fn no_key_is_listed_twice() {
        let names: BTreeSet<_> = ALL.iter().map(|key| key.description().name).collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn only_a_secret_key_holds_secrets() {
        for name in [
            "GOLEM_PROVIDER_ETHEREUM_PRIVATE_KEY",
            "GOLEM_PROVIDER_CAPTCHA_API_KEY",
            "GOLEM_PROVIDER_POLYGON_RPC_URL",
        ] {
            let key = ALL.iter().find(|key| key.description().name == name).unwrap();
            assert!(key.description().secret, "{name}");
        }
        assert!(!PORT.description.secret && !PORT.description.later);
    }
}
