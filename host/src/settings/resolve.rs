//! From texts to [`Settings`]: finds unknown keys, checks every value and what values say together, then builds.
//!
//! All problems are collected before anything is decided, so that an operator mends a file once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use rust_decimal::Decimal;

use super::{
    ApiSettings, ChainSettings, DiscoverySettings, EffectiveKey, Environment, FaucetSettings,
    IdentitySettings, LogSettings, MonthlyPrices, Overrides, PaymentSettings, PortQuorum,
    PortSettings, PriceSourceSettings, PricingSettings, PublicIp, ReachabilitySettings,
    ResourceSettings, Secret, Settings, SettingsError, StreamMonitorSettings, Verification,
    VmSettings, WalletSettings, WithdrawalSettings,
    keys::{self, AnyKey, Description, Key, NO_ADDRESS, OptionalKey, PLUGIN_PREFIX, PREFIX},
    parse::Show,
    public_ip,
    secret::HIDDEN,
    sources::{FILE_NAME, Inputs, Origin, RUST_LOG, Sourced, Sources},
};

/// Makes the settings from what the process was started with.
///
/// # Errors
/// Everything that is wrong with any key, all at once.
pub fn resolve(inputs: &Inputs, overrides: &Overrides) -> Result<Settings, SettingsError> {
    let mut sources = Sources::of_environment(&inputs.environment);
    if let Some(dir) = &inputs.working_dir {
        sources.add_file(dir);
    }
    let paths = Paths { home: inputs.home_dir.as_deref(), working: inputs.working_dir.as_deref() };
    let data_dir = paths.absolute(&value(&sources, &keys::DATA_DIR));
    if let Ok(dir) = &data_dir
        && inputs.working_dir.as_ref() != Some(dir)
    {
        add_file_of_data_dir(&mut sources, dir, &paths);
    }
    apply(&mut sources, overrides);

    let mut problems = std::mem::take(&mut sources.problems);
    problems.extend(data_dir.as_ref().err().cloned());
    problems.extend(unknown_keys(&sources));
    problems.extend(wrong_values(&sources));
    problems.extend(contradictions(&sources));
    match data_dir {
        Ok(data_dir) if problems.is_empty() => build(&sources, data_dir, &paths),
        _ => Err(SettingsError { problems }),
    }
}

/// The file in the data directory cannot move the data directory.
fn add_file_of_data_dir(sources: &mut Sources, dir: &Path, paths: &Paths<'_>) {
    let name = keys::DATA_DIR.description.name;
    let known = sources.get(name).is_some();
    sources.add_file(dir);
    if !known && paths.absolute(&value(sources, &keys::DATA_DIR)).as_deref() != Ok(dir) {
        let file = dir.join(FILE_NAME);
        sources.problems.push(format!(
            "{name} is set in {}, which is itself found through it; set it in the environment instead",
            file.display()
        ));
    }
}

fn apply(sources: &mut Sources, overrides: &Overrides) {
    if overrides.development {
        let value = Environment::Development.as_str();
        sources.set(keys::ENVIRONMENT.description.name, value, Origin::CommandLine);
    }
    if let Some(stop) = overrides.stop_vms_on_exit {
        sources.set(keys::STOP_VMS_ON_EXIT.description.name, &stop.show(), Origin::CommandLine);
    }
    if overrides.skip_port_verification {
        let name = keys::SKIP_PORT_VERIFICATION.description.name;
        sources.set(name, &true.show(), Origin::CommandLine);
    }
    let log = keys::LOG.description.name;
    if let (None, Some(Sourced { text, origin })) =
        (sources.get(log), sources.get(RUST_LOG).cloned())
    {
        sources.set(log, &text, origin);
    }
}

fn unknown_keys(sources: &Sources) -> Vec<String> {
    let known =
        |name: &str| name == RUST_LOG || keys::ALL.iter().any(|key| key.description().name == name);
    let unknown = sources.iter().filter(|(name, _)| !known(name) && plugin_key(name).is_none());
    unknown
        .map(|(name, Sourced { origin, .. })| {
            format!("{name} ({origin}) is not a key{}", suggestion(name))
        })
        .collect()
}

/// The closest known name, if one is close.
fn suggestion(name: &str) -> String {
    let names = keys::ALL.iter().map(|key| key.description().name);
    let short = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_ascii_uppercase();
    let wanted = short(name);
    let closest = names.min_by_key(|known| strsim::osa_distance(&short(known), &wanted));
    match closest
        .filter(|known| strsim::osa_distance(&short(known), &wanted) <= (wanted.len() / 3).max(2))
    {
        Some(known) => format!("; did you mean {known}?"),
        None => "; `golem-provider --help` lists those that are".into(),
    }
}

fn wrong_values(sources: &Sources) -> Vec<String> {
    let wrong = |key: &&dyn AnyKey| {
        let description = key.description();
        let Sourced { text, origin } = sources.get(description.name)?;
        let allowed = key.check(text).err()?;
        let name = match origin {
            Origin::Environment(variable) => variable,
            _ => description.name,
        };
        let shown = if description.secret { HIDDEN.to_owned() } else { format!("`{text}`") };
        Some(format!("{name} is {shown} ({origin}); allowed is {allowed}"))
    };
    keys::ALL.iter().filter_map(wrong).collect()
}

/// Values that are right each by itself, and wrong together.
fn contradictions(sources: &Sources) -> Vec<String> {
    let (start, end) =
        (value(sources, &keys::PORT_RANGE_START), value(sources, &keys::PORT_RANGE_END));
    let port = value(sources, &keys::PORT);
    let mut problems = Vec::new();
    let name = |key: &Key<u16>| key.description.name;
    if start >= end {
        problems.push(format!(
            "{} is {start} and {} is {end}; allowed is a start below the end, which itself does not belong to the range",
            name(&keys::PORT_RANGE_START),
            name(&keys::PORT_RANGE_END)
        ));
    } else if (start..end).contains(&port) {
        problems.push(format!(
            "{} is {port}, which lies among the ports for SSH, {start} to {}; allowed is one outside of them",
            name(&keys::PORT),
            end - 1
        ));
    }
    if let PortQuorum::AtLeast(needed) = value(sources, &keys::PORT_CHECK_QUORUM) {
        let servers = value(sources, &keys::PORT_CHECK_SERVERS).len();
        let asked = servers + value(sources, &keys::PORT_CHECK_PEERS) as usize;
        if needed as usize > asked {
            problems.push(format!(
                "{} is {needed}, but only {asked} are asked; allowed is `majority` or at most as many as there are in {} and {}",
                keys::PORT_CHECK_QUORUM.description.name,
                keys::PORT_CHECK_SERVERS.description.name,
                keys::PORT_CHECK_PEERS.description.name
            ));
        }
    }
    problems
}

/// Plugin and key of a plugin's setting.
fn plugin_key(name: &str) -> Option<(String, String)> {
    let rest = name.strip_prefix(PLUGIN_PREFIX)?;
    // Two of them end a name that has one in it.
    let (plugin, key) = rest.split_once("__").or_else(|| rest.split_once('_'))?;
    let fits = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    (fits(plugin) && fits(key))
        .then(|| (plugin.to_ascii_lowercase(), key.to_ascii_lowercase().replace('_', "-")))
}

/// The key's value; its default where it is not set, and also where it is wrong, which `wrong_values` reports.
fn value<T>(sources: &Sources, key: &Key<T>) -> T {
    let text = sources.get(key.description.name).map(|sourced| sourced.text.as_str());
    text.and_then(|text| (key.parse)(text).ok()).unwrap_or_else(key.default)
}

fn optional<T>(sources: &Sources, key: &OptionalKey<T>) -> Option<T> {
    (key.parse)(&sources.get(key.description.name)?.text).ok()
}

/// What paths are relative to.
struct Paths<'a> {
    home: Option<&'a Path>,
    working: Option<&'a Path>,
}

impl Paths<'_> {
    /// `~` is the home directory; anything else is relative to the working directory. Without `.` and `//` in it.
    fn absolute(&self, path: &Path) -> Result<PathBuf, String> {
        let base = match path.strip_prefix("~") {
            Ok(rest) => self.home.map(|home| home.join(rest)),
            Err(_) if path.is_absolute() => Some(path.to_owned()),
            Err(_) => self.working.map(|working| working.join(path)),
        };
        let absolute = base.filter(|path| path.is_absolute()).ok_or_else(|| {
            format!("{} cannot be found: there is no home or working directory; set absolute paths, {} first", path.display(),
                keys::DATA_DIR.description.name)
        })?;
        Ok(absolute.components().filter(|part| *part != Component::CurDir).collect())
    }
}

fn build(
    sources: &Sources,
    data_dir: PathBuf,
    paths: &Paths<'_>,
) -> Result<Settings, SettingsError> {
    let environment = value(sources, &keys::ENVIRONMENT);
    let mut problems = Vec::new();
    let mut dir = |key: &OptionalKey<PathBuf>| {
        paths.absolute(&optional(sources, key)?).map_err(|problem| problems.push(problem)).ok()
    };
    let plugin_dir = dir(&keys::PLUGIN_DIR).unwrap_or_else(|| data_dir.join("plugins"));
    let key_dir = dir(&keys::ETHEREUM_KEY_DIR).unwrap_or_else(|| data_dir.join("keys"));
    let passphrase_file = dir(&keys::ETHEREUM_KEYSTORE_PASSPHRASE_FILE);
    let vm_data_dir = dir(&keys::VM_DATA_DIR);
    if !problems.is_empty() {
        return Err(SettingsError { problems });
    }

    let host = optional(sources, &keys::HOST).unwrap_or(match environment {
        Environment::Production => Ipv4Addr::UNSPECIFIED.into(),
        Environment::Development => Ipv4Addr::LOCALHOST.into(),
    });
    let range = value(sources, &keys::PORT_RANGE_START)..value(sources, &keys::PORT_RANGE_END);
    let max_vms = value(sources, &keys::MAX_VMS);
    let mut warnings = Vec::new();
    let reachability = reachability(sources, environment);
    let public_ip = public_ip(environment, &reachability, host, &mut warnings);
    warnings.extend(other_warnings(sources, max_vms, range.len()));

    let mut settings = Settings {
        environment,
        vm_data_dir,
        vm_backend: optional(sources, &keys::VM_BACKEND),
        api: ApiSettings {
            bind: SocketAddr::new(host, value(sources, &keys::PORT)),
            rate_limit_per_minute: value(sources, &keys::RATE_LIMIT_PER_MINUTE),
            require_signed_requests: value(sources, &keys::REQUIRE_SIGNED_REQUESTS),
            trusted_proxies: value(sources, &keys::TRUSTED_PROXIES),
            cors_origins: value(sources, &keys::CORS_ORIGINS),
        },
        identity: IdentitySettings {
            name: value(sources, &keys::NAME),
            country: optional(sources, &keys::COUNTRY),
            public_ip,
        },
        wallet: WalletSettings {
            key_dir,
            private_key: optional(sources, &keys::ETHEREUM_PRIVATE_KEY),
            passphrase_file,
        },
        ports: PortSettings {
            range,
            bind: host,
            max_connections_per_vm: value(sources, &keys::MAX_CONNECTIONS_PER_VM),
        },
        reachability,
        vms: VmSettings {
            default_image: value(sources, &keys::DEFAULT_VM_IMAGE),
            max_vms,
            stop_on_exit: value(sources, &keys::STOP_VMS_ON_EXIT),
            launch_timeout: Duration::from_secs(value(sources, &keys::LAUNCH_TIMEOUT_SECONDS)),
        },
        resources: ResourceSettings {
            min_cpu_cores: value(sources, &keys::MIN_CPU_CORES),
            min_memory_gb: value(sources, &keys::MIN_MEMORY_GB),
            min_storage_gb: value(sources, &keys::MIN_STORAGE_GB),
            cpu_threshold_percent: value(sources, &keys::CPU_THRESHOLD),
            memory_threshold_percent: value(sources, &keys::MEMORY_THRESHOLD),
            storage_threshold_percent: value(sources, &keys::STORAGE_THRESHOLD),
        },
        pricing: pricing(sources, environment),
        chains: ChainSettings {
            nodes: nodes(sources),
            max_gas_price_wei: gwei(value(sources, &keys::MAX_GAS_PRICE_GWEI)),
            glm_token: Some(value(sources, &keys::GLM_TOKEN_ADDRESS))
                .filter(|address| !address.eq_ignore_ascii_case(NO_ADDRESS)),
        },
        payments: payments(sources, environment),
        faucets: FaucetSettings {
            golem_base_url: optional(sources, &keys::FAUCET_URL),
            payments_url: optional(sources, &keys::L2_FAUCET_URL),
            captcha_url: optional(sources, &keys::CAPTCHA_URL),
            captcha_api_key: optional(sources, &keys::CAPTCHA_API_KEY),
        },
        discovery: DiscoverySettings {
            advertisers: advertisers(sources),
            network: value(sources, &keys::NETWORK),
            payments_network: value(sources, &keys::PAYMENTS_NETWORK),
        },
        log: LogSettings {
            format: value(sources, &keys::LOG_FORMAT),
            filter: value(sources, &keys::LOG),
            file: None,
        },
        plugins: plugins(sources),
        warnings,
        effective: Vec::new(),
        data_dir,
        plugin_dir,
    };
    settings.effective = effective(sources, &settings);
    Ok(settings)
}

fn pricing(sources: &Sources, environment: Environment) -> PricingSettings {
    let source = PriceSourceSettings {
        url: value(sources, &keys::COINGECKO_API_URL),
        ids: value(sources, &keys::COINGECKO_IDS),
    };
    // Whoever tries things out asks nobody, unless told whom.
    let wanted = environment == Environment::Production
        || sources.get(keys::COINGECKO_API_URL.description.name).is_some();
    let enabled = wanted && !source.ids.is_empty() && value(sources, &keys::PRICING_UPDATE_ENABLED);
    PricingSettings {
        usd: MonthlyPrices {
            per_core: value(sources, &keys::PRICE_USD_PER_CORE_MONTH),
            per_gb_ram: value(sources, &keys::PRICE_USD_PER_GB_RAM_MONTH),
            per_gb_storage: value(sources, &keys::PRICE_USD_PER_GB_STORAGE_MONTH),
        },
        source: enabled.then_some(source),
        min_delta_percent: value(sources, &keys::PRICING_UPDATE_MIN_DELTA_PERCENT),
    }
}

fn payments(sources: &Sources, environment: Environment) -> PaymentSettings {
    let contract = Some(value(sources, &keys::STREAM_PAYMENT_ADDRESS))
        .filter(|address| !address.eq_ignore_ascii_case(NO_ADDRESS));
    let seconds = |key: &Key<u64>| Duration::from_secs(value(sources, key));
    let chosen = optional(sources, &keys::PAYMENT_VERIFIER);
    PaymentSettings {
        verifier: match environment {
            Environment::Development => None,
            Environment::Production => {
                chosen.or_else(|| contract.as_ref().map(|_| "stream-payment".to_owned()))
            }
        },
        contract: contract.filter(|_| environment == Environment::Production),
        confirmations: value(sources, &keys::STREAM_CONFIRMATIONS),
        min_remaining: seconds(&keys::STREAM_MIN_REMAINING_SECONDS),
        create_grace: seconds(&keys::STREAM_CREATE_GRACE_SECONDS),
        retention: seconds(&keys::STREAM_RETENTION_SECONDS),
        price_memory: if advertisers(sources).contains("golem-base") {
            seconds(&keys::PRICING_UPDATE_INTERVAL_GOLEM_BASE)
                .max(seconds(&keys::PRICING_UPDATE_INTERVAL_DISCOVERY))
        } else {
            seconds(&keys::PRICING_UPDATE_INTERVAL_DISCOVERY)
        },
        monitor: StreamMonitorSettings {
            enabled: value(sources, &keys::STREAM_MONITOR_ENABLED),
            interval: seconds(&keys::STREAM_MONITOR_INTERVAL_SECONDS),
        },
        withdrawals: WithdrawalSettings {
            enabled: value(sources, &keys::STREAM_WITHDRAW_ENABLED),
            interval: seconds(&keys::STREAM_WITHDRAW_INTERVAL_SECONDS),
            min_wei: value(sources, &keys::STREAM_MIN_WITHDRAW_WEI),
        },
    }
}

fn reachability(sources: &Sources, environment: Environment) -> ReachabilitySettings {
    let is_development = environment == Environment::Development;
    let public_ip_sources = match is_development {
        true => Vec::new(),
        false => value(sources, &keys::PUBLIC_IP_SOURCES),
    };
    ReachabilitySettings {
        verification: match value(sources, &keys::SKIP_PORT_VERIFICATION) {
            _ if is_development => Verification::Development,
            true => Verification::Skipped,
            false => Verification::Wanted,
        },
        servers: value(sources, &keys::PORT_CHECK_SERVERS),
        quorum: value(sources, &keys::PORT_CHECK_QUORUM),
        interval: Duration::from_secs(value(sources, &keys::PORT_CHECK_INTERVAL_SECONDS)),
        unverified_ports: value(sources, &keys::UNVERIFIED_PORTS),
        peers: value(sources, &keys::PORT_CHECK_PEERS),
        serve_peers: value(sources, &keys::PORT_CHECK_PEERS_ENABLED),
        public_ip: value(sources, &keys::PUBLIC_IP),
        public_ip_sources,
    }
}

fn public_ip(
    environment: Environment,
    reachability: &ReachabilitySettings,
    host: IpAddr,
    warnings: &mut Vec<String>,
) -> Option<IpAddr> {
    match (reachability.public_ip, environment) {
        (PublicIp::Fixed(address), _) => Some(address),
        (PublicIp::Auto, Environment::Development) if host.is_unspecified() => Some(Ipv4Addr::LOCALHOST.into()),
        (PublicIp::Auto, Environment::Development) => Some(host),
        (PublicIp::Auto, Environment::Production) => public_ip::of_default_route().or_else(|| {
            if reachability.public_ip_sources.is_empty() {
                let name = keys::PUBLIC_IP.description.name;
                warnings.push(format!("this machine has no public address of its own, and nobody is asked for it; set {name} to the one it is reached by"));
            }
            None
        }),
    }
}

fn other_warnings(sources: &Sources, max_vms: u32, ports: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    let payments = payments(sources, value(sources, &keys::ENVIRONMENT));
    if payments.verifier.is_some() && !payments.monitor.enabled {
        warnings.push(format!(
            "{} is off: a machine goes on running when its stream has ended; to stop such: golem-provider config monitor --enable",
            keys::STREAM_MONITOR_ENABLED.description.name
        ));
    }
    if payments.verifier.is_some()
        && optional(sources, &keys::POLYGON_RPC_URL).is_none_or(|urls| urls.is_empty())
    {
        warnings.push(format!(
            "payments are demanded, and nobody can check them: set {} to a node of the chain that is paid on",
            keys::POLYGON_RPC_URL.description.name
        ));
    }
    let later = keys::ALL.iter().map(|key| key.description());
    let later: Vec<_> = later
        .filter(|key| key.later && sources.get(key.name).is_some())
        .map(|key| key.name)
        .collect();
    if !later.is_empty() {
        warnings.push(format!("set, but without effect in this version: {}", later.join(", ")));
    }
    if sources.get(keys::ID.description.name).is_some() {
        warnings.push(format!(
            "{} has no effect: the id is the address of the Ethereum key",
            keys::ID.description.name
        ));
    }
    if max_vms as usize > ports {
        let name = keys::MAX_VMS.description.name;
        warnings.push(format!("{name} is {max_vms}, but there are ports for {ports} VMs only"));
    }
    warnings
}

/// Keys of the provider that are settings of a plugin, under the plugin's name with `_` for `-`. A later one of the same
/// setting wins.
static INHERITED: &[(Description, &str, &str)] = &[
    (keys::MULTIPASS_BINARY_PATH.description, "multipass", "binary-path"),
    (keys::DISCOVERY_URL.description, "discovery_server", "url"),
    (keys::ADVERTISEMENT_INTERVAL.description, "discovery_server", "interval-seconds"),
    (keys::DISCOVERY_ADVERTISEMENT_INTERVAL.description, "discovery_server", "interval-seconds"),
    (
        keys::PRICING_UPDATE_INTERVAL_DISCOVERY.description,
        "discovery_server",
        "price-interval-seconds",
    ),
    (keys::GOLEM_BASE_ADVERTISEMENT_INTERVAL.description, "golem_base", "interval-seconds"),
    (keys::PRICING_UPDATE_INTERVAL_GOLEM_BASE.description, "golem_base", "price-interval-seconds"),
    (keys::STREAM_PAYMENT_ADDRESS.description, "stream_payment", "contract"),
    (keys::GLM_TOKEN_ADDRESS.description, "stream_payment", "glm-token"),
];

/// Those that were chosen; else the central server, and the chain where there is one to ask.
fn advertisers(sources: &Sources) -> BTreeSet<String> {
    if let Some(chosen) = optional(sources, &keys::ADVERTISER_TYPE) {
        return chosen.into_iter().collect();
    }
    let mut advertisers = BTreeSet::from(["discovery-server".to_owned()]);
    if optional(sources, &keys::GOLEM_BASE_RPC_URL).is_some_and(|urls| !urls.is_empty()) {
        advertisers.insert("golem-base".to_owned());
    }
    advertisers
}

fn nodes(sources: &Sources) -> BTreeMap<String, Vec<Secret>> {
    let golem_base = optional(sources, &keys::GOLEM_BASE_RPC_URL).unwrap_or_default();
    let payments = optional(sources, &keys::POLYGON_RPC_URL).unwrap_or_default();
    let secret = |urls: Vec<String>| -> Vec<Secret> { urls.into_iter().map(Secret::new).collect() };
    [("golem-base", golem_base), ("payments", payments)]
        .into_iter()
        .filter(|(_, urls)| !urls.is_empty())
        .map(|(name, urls)| (name.to_owned(), secret(urls)))
        .collect()
}

/// In wei. A price has at most nine digits after the point, so nothing is lost.
fn gwei(price: Decimal) -> u128 {
    u128::try_from(price * Decimal::from(1_000_000_000)).unwrap_or(0)
}

fn plugins(sources: &Sources) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut plugins = BTreeMap::<String, BTreeMap<String, String>>::new();
    let inherited = INHERITED.iter().filter_map(|(key, plugin, setting)| {
        Some((((*plugin).to_owned(), (*setting).to_owned()), sources.get(key.name)?))
    });
    let own = sources
        .iter()
        .filter(|(name, _)| *name != keys::PLUGIN_DIR.description.name)
        .filter_map(|(name, sourced)| Some((plugin_key(name)?, sourced)));
    for ((plugin, key), sourced) in inherited.into_iter().chain(own) {
        plugins.entry(plugin).or_default().insert(key, sourced.text.clone());
    }
    plugins
}

/// What `config show` prints.
fn effective(sources: &Sources, settings: &Settings) -> Vec<EffectiveKey> {
    let resolved = |name: &str| -> Option<String> {
        let paths = [
            (keys::DATA_DIR.description.name, &settings.data_dir),
            (keys::PLUGIN_DIR.description.name, &settings.plugin_dir),
            (keys::ETHEREUM_KEY_DIR.description.name, &settings.wallet.key_dir),
        ];
        let path = paths.iter().find(|(key, _)| *key == name).map(|(_, path)| path.show());
        path.or_else(|| {
            (name == keys::HOST.description.name).then(|| settings.api.bind.ip().show())
        })
    };
    let known = keys::ALL.iter().map(|key| {
        let description = key.description();
        let set = sources.get(description.name);
        let value = match set {
            Some(_) if description.secret => Some(HIDDEN.to_owned()),
            Some(sourced) => resolved(description.name).or_else(|| key.check(&sourced.text).ok()),
            None => resolved(description.name).or_else(|| key.default()),
        };
        let origin = set.map_or(Origin::Default, |sourced| sourced.origin.clone());
        EffectiveKey { key: description.name.to_owned(), value, origin }
    });
    let plugins = sources.iter().filter(|(name, _)| {
        *name != keys::PLUGIN_DIR.description.name && plugin_key(name).is_some()
    });
    // Which of a plugin's settings are secret only the plugin knows, so none is shown.
    let plugins = plugins.map(|(name, sourced)| EffectiveKey {
        key: name.to_owned(),
        value: Some(HIDDEN.to_owned()),
        origin: sourced.origin.clone(),
    });
    known.chain(plugins).collect()
}

#[cfg(test)]
mod tests;
