//! The composition root: builds every service out of the settings, runs them until a signal, and ends them in order.
//!
//! The order of the start is its design. What can be wrong is found out before anything is promised: the data directory is
//! locked, the API's address is taken, the key is there. Then plugins are loaded, and VMs, ports and machines are brought
//! into line; only then is the first request answered, so that no answer speaks of a state that is still being
//! found out. Requests that come before wait in the kernel's queue.
//!
//! At the end the API closes first, then VM operations under way get some time, then the proxy ends its sessions and the
//! store its thread. Machines run on, unless the settings say that they stop.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use alloy::primitives::U256;
use async_trait::async_trait;
use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, AdminListener, Doors, Ending, PluginDesk},
    api::{Api, ApiState, Server},
    chains::{self, ChainError, Chains, Nodes},
    discovery::{Advertising, Free, Identity, Reach, Selection, Sources},
    http_client::AskError,
    payments::{
        pricing::{self, MonthlyPrices, PriceSource, Pricing},
        wallet::{Wallet, WalletError},
    },
    plugins::{
        Advertiser, Ethereum, Failure, FailureKind, Finding, StateError, StateStore, VmBackend,
        advertiser::Prices,
        catalog::{Catalog, CatalogConfig, CatalogError, Loaded, PluginError, Probed},
        ethereum::{ChainFailure, Event, Receipt, Transaction},
    },
    ports::{
        InvalidRange,
        verification::{NotAdvertisable, Reachability, Refused, Verifier, VerifierConfig},
    },
    proxy::{Proxy, ProxyConfig},
    resources::{Monitor, MonitorError, Rules, Tracker},
    service_manager,
    settings::{Environment, Settings},
    status::{Observer, ObserverParts},
    store::{PluginState, Store, StoreError},
    vms::{Backends, Deadlines, StartError, VmService, VmServiceConfig, VmServiceParts},
};

/// From the signal to the end of the process there are 10 s; these are the parts of it.
mod shutdown {
    use super::Duration;

    /// For requests that are being answered.
    pub const API: Duration = Duration::from_secs(2);
    /// For VM operations under way, and for stopping VMs where that is wanted.
    pub const VMS: Duration = Duration::from_secs(6);
    /// For advertisements to be withdrawn, beside the VM operations.
    pub const ADVERTISING: Duration = Duration::from_secs(4);
    /// For operators' commands that are being answered.
    pub const ADMIN: Duration = Duration::from_millis(500);
    /// For SSH sessions to be told.
    pub const PROXY: Duration = Duration::from_secs(1);
}

/// How long a machine that is to be stopped may take to shut down before it is switched off.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// Descriptors that are wanted: two per SSH connection, one per request, some per VM.
const WANTED_DESCRIPTORS: u64 = 65_536;

/// Why the provider could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("cannot take signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "cannot listen on {address}: {source}; set GOLEM_PROVIDER_HOST or GOLEM_PROVIDER_PORT to an address that is free"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Wallet(#[from] WalletError),
    #[error("cannot ask the nodes of any chain: {0}")]
    Chains(#[from] AskError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("cannot make the directory for VMs {directory}: {source}", directory = directory.display())]
    VmDirectory { directory: PathBuf, source: io::Error },
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Ports(#[from] InvalidRange),
    #[error(transparent)]
    Unverified(#[from] Refused),
    #[error(transparent)]
    Vms(#[from] StartError),
    #[error("a part of the start was broken off: {0}")]
    BrokenOff(#[from] tokio::task::JoinError),
}

/// Runs the provider until SIGTERM or SIGINT.
///
/// # Errors
/// It could not start. Nothing that was begun is left behind.
pub fn run(settings: Settings) -> Result<(), NodeError> {
    close_inherited_descriptors_on_exec();
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(NodeError::Runtime)?;
    let ended = runtime.block_on(async {
        let stop = CancellationToken::new();
        watch_signals(stop.clone()).map_err(NodeError::Signals)?;
        tokio::select! {
            // A signal during the start ends it; whatever was under way is taken up by the next start.
            () = stop.cancelled() => Ok(None),
            node = Node::start(&settings) => node.map(Some),
        }
        .map(|node| (node, stop))
    });
    let outcome = ended.and_then(|(node, stop)| match node {
        Some(node) => runtime.block_on(node.serve(&settings, stop)),
        None => Ok(()),
    });
    // What still blocks a thread, such as a copy of an image, does not hold the end.
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome
}

/// A provider that is ready to answer.
struct Node {
    begun: Instant,
    listener: TcpListener,
    api: Api,
    store: Store,
    proxy: Proxy,
    vms: VmService,
    verifier: Verifier,
    advertising: Advertising,
    /// What goes on beside the service until it ends.
    beside: JoinSet<()>,
    desk: PluginDesk,
    pricing: Pricing,
    /// Absent where nobody is to be asked.
    price_source: Option<PriceSource>,
    observer: Observer,
    /// Absent where the socket could not be made.
    admin: Option<AdminListener>,
}

impl Node {
    async fn start(settings: &Settings) -> Result<Self, NodeError> {
        let begun = Instant::now();
        let store = Store::open(&settings.data_dir).await?;
        let address = settings.api.bind;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| NodeError::Listen { address, source })?;
        let vm_data_dir = settings.vm_data_dir();
        tokio::fs::create_dir_all(&vm_data_dir)
            .await
            .map_err(|source| NodeError::VmDirectory { directory: vm_data_dir.clone(), source })?;
        let catalog_config = CatalogConfig::from(settings);
        let state: Arc<dyn StateStore> = Arc::new(store.plugin_state());
        let wallet_settings = settings.wallet.clone();
        let opening = tokio::task::spawn_blocking(move || Wallet::open(&wallet_settings));
        let wallet = opening.await??;
        let nodes = Nodes::new(&settings.chains.nodes)?;
        let max_gas_price_wei = settings.chains.max_gas_price_wei;
        let ethereum = Arc::new(Chains::new(nodes, wallet.signer().clone(), max_gas_price_wei));
        // Side by side: a plugin's probe waits for programs, and neither of these needs the other.
        let (monitor, (catalog, plugins)) = tokio::try_join!(
            async { Ok::<_, NodeError>(Monitor::start(vm_data_dir).await?) },
            async {
                let setting_up =
                    tokio::task::spawn_blocking(|| Catalog::new(catalog_config, state, ethereum));
                let catalog = setting_up.await??;
                let plugins = load_plugins(&catalog, settings.vm_backend.as_deref()).await?;
                Ok((catalog, plugins))
            },
        )?;

        let proxy = Proxy::new(ProxyConfig {
            bind: settings.ports.bind,
            max_connections_per_vm: settings.ports.max_connections_per_vm,
            ..ProxyConfig::default()
        });
        let verifier = VerifierConfig::new(settings);
        let ports = verifier.allocator(settings.ports.range.clone())?;
        let vms = VmService::start(VmServiceParts {
            store: store.clone(),
            proxy: proxy.clone(),
            backends: plugins.backends,
            resources: Tracker::new(Rules::from(&settings.resources), monitor),
            ports: ports.clone(),
            config: vm_config(settings),
        })
        .await?;
        let verifier = Verifier::new(verifier, ports, {
            let proxy = proxy.clone();
            move || proxy.open_ports()
        });
        let reachability = verifier.reachability();
        let pricing = Pricing::open(&settings.pricing, store.clone()).await?;
        let price_source = settings.pricing.source.as_ref().and_then(|source| {
            PriceSource::new(source)
                .inspect_err(|error| {
                    tracing::error!("nobody can be asked for the price of GLM: {error}")
                })
                .ok()
        });
        let mut beside = JoinSet::new();
        let (offer, offering) = offer_sources(
            settings,
            wallet.provider_id(),
            vms.clone(),
            pricing.watch(),
            reachability.clone(),
        )
        .watch(CancellationToken::new());
        beside.spawn(offering);
        let selection = match settings.environment {
            Environment::Development => Selection::Nobody,
            Environment::Production => Selection::Named(settings.discovery.advertisers.clone()),
        };
        let advertising = Advertising::new(wallet.provider_id(), offer, selection);
        let verifier = verifier.with_peers(Arc::new(advertising.clone()));
        for advertiser in plugins.advertisers {
            advertising.install(advertiser);
        }
        for name in advertising.missing() {
            tracing::error!(
                plugin.name = name,
                "this provider should be listed by {name}, which is no plugin that can be used; see golem-provider plugin list"
            );
        }
        let api = ApiState::new(settings, wallet.provider_id(), vms.clone(), pricing.watch())
            .with_reachability(reachability.clone())
            .with_advertising(advertising.clone());
        let api = Api::new(api);
        let catalog = Arc::new(catalog);
        let parts = ObserverParts {
            catalog: Arc::clone(&catalog),
            vms: vms.clone(),
            proxy: proxy.clone(),
            advertising: advertising.clone(),
            prices: pricing.watch(),
            reachability,
        };
        let observer = Observer::new(settings, Rules::from(&settings.resources).minimums, parts);
        let desk = PluginDesk::new(catalog, vms.clone(), advertising.clone());
        let admin = AdminListener::bind(&settings.data_dir)
            // Machines matter more than the convenience of changing plugins without a restart.
            .inspect_err(|error| tracing::error!("{error}"))
            .ok();
        Ok(Self {
            begun,
            listener,
            api,
            store,
            proxy,
            vms,
            verifier,
            advertising,
            beside,
            desk,
            pricing,
            price_source,
            observer,
            admin,
        })
    }

    /// # Errors
    /// Nobody could check the ports, and the operator wants no provider then.
    async fn serve(self, settings: &Settings, stop: CancellationToken) -> Result<(), NodeError> {
        let Self {
            begun,
            listener,
            api,
            store,
            proxy,
            vms,
            verifier,
            advertising,
            mut beside,
            desk,
            pricing,
            price_source,
            observer,
            admin,
        } = self;
        let address = listener.local_addr().unwrap_or(settings.api.bind);
        tracing::info!(
            environment = settings.environment.as_str(),
            data_dir = %settings.data_dir.display(),
            vms = vms.list().len(),
            "ready on http://{address} after {} ms",
            begun.elapsed().as_millis()
        );
        if settings.environment == Environment::Development {
            tracing::info!(
                "development: nothing is advertised, no payments are taken, no ports are verified"
            );
        }
        service_manager::tell(service_manager::State::Ready);
        let ending = Ending::new(stop.clone());
        beside.spawn(admin::watch(desk.clone(), stop.clone()));
        if let Some(source) = price_source {
            beside.spawn(pricing.clone().follow(source, stop.clone()));
        }
        let mut answering = JoinSet::new();
        if let Some(admin) = admin {
            let doors = Doors { desk, pricing, observer, ending: ending.clone() };
            answering.spawn(admin::serve(admin, doors, stop.clone()));
        }
        // Beside the API, which has to listen for its port to be found open.
        let verifying = tokio::spawn({
            let stop = stop.clone();
            async move {
                let verified = verifier.run(stop.clone()).await;
                stop.cancel();
                verified
            }
        });
        let server = Server { grace: shutdown::API, ..Server::default() };
        server.serve(listener, api, stop.cancelled()).await;
        service_manager::tell(service_manager::State::Stopping);
        // A change to the plugins that takes longer is cut off between two steps, as by a crash.
        let answered = async { while answering.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(shutdown::ADMIN, answered).await;
        answering.shutdown().await;
        beside.shutdown().await;
        let verified = verifying.await;
        let stop_vms = ending.stop_vms().unwrap_or(settings.vms.stop_on_exit);
        tracing::info!(
            "ending; running machines {}",
            if stop_vms { "are stopped" } else { "go on running" }
        );
        tokio::join!(
            vms.shutdown(stop_vms, shutdown::VMS),
            advertising.shutdown(shutdown::ADVERTISING),
        );
        proxy.shutdown(shutdown::PROXY).await;
        store.close().await;
        tracing::info!("ended");
        Ok(verified??)
    }
}

/// What was loaded.
struct Plugins {
    backends: Backends,
    advertisers: Vec<Arc<dyn Advertiser>>,
}

/// All plugins there are. New machines are made by the wanted backend, else by the first that can work here; every other
/// one is beside it, for the VMs that it once made.
async fn load_plugins(catalog: &Catalog, wanted: Option<&str>) -> Result<Plugins, PluginError> {
    let mut backends: Vec<Arc<dyn VmBackend>> = Vec::new();
    let mut advertisers = Vec::new();
    let mut default = None;
    let mut reasons = Vec::new();
    let names = catalog.names().await;
    if let Some(wanted) = wanted
        && !names.iter().any(|name| name == wanted)
    {
        // Says which ones are known.
        catalog.load_named(wanted).await?;
    }
    let loading = join_all(names.iter().map(|name| catalog.load_named(name))).await;
    for (name, probed) in names.into_iter().zip(loading) {
        let is_wanted = wanted == Some(name.as_str());
        let probed = match probed {
            Ok(probed) => probed,
            Err(error) if is_wanted => return Err(error),
            Err(error @ PluginError::Disabled { .. }) => {
                tracing::info!(plugin.name = %name, "{error}");
                reasons.push(error.to_string());
                continue;
            }
            Err(error) => {
                tracing::error!(plugin.name = %name, "{error}");
                reasons.push(error.to_string());
                continue;
            }
        };
        admin::report(&probed);
        let works = probed.works();
        let Probed { plugin, about, findings } = probed;
        match plugin {
            Loaded::Advertiser(advertiser) if works => advertisers.push(advertiser),
            // What it lacks was just told.
            Loaded::Advertiser(_) => {}
            Loaded::VmBackend(backend) => {
                let sentence = |finding: &Finding| format!("{name}: {}", finding.sentence());
                let blocking = findings.iter().filter(|finding| finding.blocks());
                reasons.extend(blocking.map(sentence));
                if works && (is_wanted || (wanted.is_none() && default.is_none())) {
                    tracing::info!(
                        plugin.name = %name,
                        plugin.version = %about.version,
                        "new machines are made by {name}"
                    );
                    default = Some(backends.len());
                }
                backends.push(backend);
            }
        }
    }
    let backends = match default {
        Some(index) => {
            let default = backends.remove(index);
            Backends::new(default, backends)
        }
        None => {
            let reason = reasons.join("; ");
            tracing::error!("no machine can be made until this is mended: {reason}");
            Backends::none(reason, backends)
        }
    };
    Ok(Plugins { backends, advertisers })
}

/// What the provider's offer to requestors is made of.
fn offer_sources(
    settings: &Settings,
    provider_id: String,
    vms: VmService,
    prices: watch::Receiver<pricing::Prices>,
    reachability: watch::Receiver<Reachability>,
) -> Sources {
    let reached = reachability.clone();
    Sources {
        identity: Identity {
            provider_id,
            name: settings.identity.name.clone(),
            country: settings.identity.country.clone(),
            platform: crate::api::platform().to_owned(),
            network: settings.discovery.network.clone(),
            payments_network: settings.discovery.payments_network.clone(),
        },
        minimums: Rules::from(&settings.resources).minimums,
        free: Box::new(move || {
            let report = vms.resources();
            let there = vms.list().len();
            let machines = reachability.borrow().max_vms;
            let machines = machines.saturating_sub(u32::try_from(there).unwrap_or(u32::MAX));
            let held = report.allocated;
            let held = (held.cpu_cores, held.memory_gb, held.storage_gb, there);
            (Free { amounts: report.available, machines }, held)
        }),
        prices: Box::new(move || {
            let prices = prices.borrow();
            let told = |monthly: MonthlyPrices| Prices {
                per_core_month: monthly.per_core,
                per_gb_ram_month: monthly.per_gb_ram,
                per_gb_storage_month: monthly.per_gb_storage,
            };
            (told(prices.usd), prices.glm.map(told))
        }),
        reach: Box::new(move || match reached.borrow().may_be_advertised() {
            Ok(address) => Reach::At(address),
            Err(pending @ NotAdvertisable::Pending) => Reach::Unknown(pending.to_string()),
            Err(reason) => Reach::Not(reason.to_string()),
        }),
    }
}

fn vm_config(settings: &Settings) -> VmServiceConfig {
    VmServiceConfig {
        default_image: settings.vms.default_image.clone(),
        max_vms: settings.vms.max_vms,
        stop_grace: STOP_GRACE,
        deadlines: Deadlines { boot: settings.vms.launch_timeout, ..Deadlines::default() },
        ..VmServiceConfig::default()
    }
}

#[async_trait]
impl Ethereum for Chains {
    fn address(&self) -> String {
        Self::address(self).to_checksum(None)
    }

    async fn sign_message(&self, message: &[u8]) -> Result<[u8; 65], Failure> {
        let failed = |error: ChainError| Failure::new(FailureKind::Internal, error.to_string());
        Self::sign_message(self, message).await.map_err(failed)
    }

    async fn request(
        &self,
        chain: &str,
        method: &str,
        params: &str,
    ) -> Result<String, ChainFailure> {
        let params =
            serde_json::value::RawValue::from_string(params.to_owned()).map_err(|error| {
                let text = format!("the parameters of {method} are no JSON: {error}");
                ChainFailure::Provider(Failure::new(FailureKind::InvalidArgument, text))
            })?;
        Ok(Self::request(self, chain, method, &params).await?.get().to_owned())
    }

    async fn send_transaction(
        &self,
        chain: &str,
        transaction: Transaction,
        timeout: Duration,
    ) -> Result<Receipt, ChainFailure> {
        let call = chains::Call {
            to: transaction.to.into(),
            data: transaction.data.into(),
            value_wei: U256::from(transaction.value_wei),
            gas_limit: transaction.gas_limit,
        };
        let receipt = Self::send_transaction(self, chain, call, timeout).await?;
        let event = |event: chains::Event| Event {
            address: event.address.into(),
            topics: event.topics.into_iter().map(Into::into).collect(),
            data: event.data.into(),
        };
        Ok(Receipt {
            transaction_hash: receipt.transaction_hash.into(),
            block_number: receipt.block_number.to(),
            succeeded: receipt.succeeded(),
            gas_used: receipt.gas_used.to(),
            events: receipt.logs.into_iter().map(event).collect(),
        })
    }
}

impl From<ChainError> for ChainFailure {
    fn from(error: ChainError) -> Self {
        let text = error.to_string();
        let kind = match error {
            ChainError::Refused { code, message, data } => {
                return Self::Rpc { code, message, data };
            }
            ChainError::NotConfigured { .. }
            | ChainError::GasTooExpensive { .. }
            | ChainError::InsufficientBalance { .. } => FailureKind::FailedPrecondition,
            ChainError::Unreachable { .. }
            | ChainError::Malformed { .. }
            | ChainError::Superseded { .. } => FailureKind::Unavailable,
            ChainError::Late { .. } | ChainError::NotMined { .. } => FailureKind::DeadlineExceeded,
            ChainError::NoToken { .. } => FailureKind::NotFound,
            ChainError::Signing(_) => FailureKind::Internal,
        };
        Self::Provider(Failure::new(kind, text))
    }
}

#[async_trait]
impl StateStore for PluginState {
    async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        Self::get(self, plugin, key).await.map_err(state_error)
    }

    async fn set(
        &self,
        plugin: &str,
        key: &str,
        value: Vec<u8>,
        room_bytes: u64,
    ) -> Result<bool, StateError> {
        Self::set(self, plugin, key, value, room_bytes).await.map_err(state_error)
    }

    async fn delete(&self, plugin: &str, key: &str) -> Result<(), StateError> {
        Self::delete(self, plugin, key).await.map_err(state_error)
    }

    async fn keys(&self, plugin: &str, prefix: &str) -> Result<Vec<String>, StateError> {
        Self::keys(self, plugin, prefix).await.map_err(state_error)
    }
}

fn state_error(error: StoreError) -> StateError {
    StateError(error.to_string())
}

/// Cancels the token at the first SIGTERM or SIGINT. A second one ends the process at once, for operators in a hurry.
fn watch_signals(stop: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                tracing::warn!("told to end a second time; ending at once");
                std::process::exit(1);
            }
            stop.cancel();
        }
    });
    Ok(())
}

/// Descriptors that this process was born with, such as a lock of the shell that started it, are not handed on to
/// programs of plugins. Those the provider opens itself never are.
fn close_inherited_descriptors_on_exec() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let descriptors = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect::<Vec<_>>();
    for descriptor in descriptors {
        // SAFETY: the number was an open descriptor a moment ago, and nothing else runs in this process yet that could close
        // it, but for the directory listing itself: setting a flag on a closed descriptor is refused and does no harm.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
        let _ = rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC);
    }
}

/// The default of 1,024 is too small for a provider; the kernel lets every process raise it up to the hard limit.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted =
        limit.maximum.map_or(WANTED_DESCRIPTORS, |maximum| maximum.min(WANTED_DESCRIPTORS));
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) =
            setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
    {
        tracing::warn!("cannot raise the number of open files to {wanted}: {error}");
    }
}
