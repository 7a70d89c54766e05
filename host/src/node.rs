//! The composition root: builds every service out of the settings, runs them until a signal, and ends them in order.
//!
//! The order of the start is its design. What can be wrong is found out before anything is promised: the data directory is
//! locked, the API's address is taken, the key is there. Then plugins are loaded, and VMs, ports and machines are brought
//! into line; only then is the first request answered, so that no answer speaks of a state that is still being
//! found out. Requests that come before wait in the kernel's queue.
//!
//! At the end the API closes first, then VM operations under way get some time, then the proxy ends its sessions and the
//! store its thread. Machines run on, unless the settings say that they stop.
//!
//! `plugins` chooses among what there is, `offer` says what advertisements are made of, `adapters` gives plugins what they ask the
//! provider for, `process` sees to signals and descriptors.

mod adapters;
mod offer;
mod plugins;
mod process;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, AdminListener, Doors, Ending, PluginDesk},
    api::{Api, ApiState, Server},
    chains::{Chains, Nodes},
    discovery::{Advertising, Selection},
    http_client::AskError,
    owners::Gatekeeper,
    payments::{
        pricing::{PriceSource, Pricing},
        streams::{
            Collector, CollectorParts, LiveRules, PaymentRules, Streams, StreamsParts, Verifiers,
        },
        wallet::{Wallet, WalletError},
    },
    plugins::{
        StateStore,
        catalog::{Catalog, CatalogConfig, CatalogError, PluginError},
    },
    ports::{
        InvalidRange,
        verification::{Refused, Verifier, VerifierConfig},
    },
    proxy::{Proxy, ProxyConfig},
    resources::{Monitor, MonitorError, Rules, Tracker},
    service_manager,
    settings::{Environment, Settings},
    status::{Observer, ObserverParts},
    store::{Store, StoreError},
    vms::{Deadlines, StartError, VmService, VmServiceConfig, VmServiceParts},
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
    process::close_inherited_descriptors_on_exec();
    let connections = process::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(NodeError::Runtime)?;
    let ended = runtime.block_on(async {
        let stop = CancellationToken::new();
        process::watch_signals(stop.clone()).map_err(NodeError::Signals)?;
        tokio::select! {
            // A signal during the start ends it; whatever was under way is taken up by the next start.
            () = stop.cancelled() => Ok(None),
            node = Node::start(&settings, connections) => node.map(Some),
        }
        .map(|node| (node, stop))
    });
    let outcome = ended.and_then(|(node, stop)| match node {
        Some(node) => runtime.block_on(node.serve(&settings, connections, stop)),
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
    /// Absent where no payments are taken.
    streams: Option<Streams>,
    /// What goes on beside the service until it ends.
    beside: JoinSet<()>,
    desk: PluginDesk,
    pricing: Pricing,
    /// Absent where nobody is to be asked.
    price_source: Option<PriceSource>,
    payment_rules: LiveRules,
    collector: Collector,
    observer: Observer,
    /// Absent where the socket could not be made.
    admin: Option<AdminListener>,
}

impl Node {
    async fn start(
        settings: &Settings,
        connections: process::Connections,
    ) -> Result<Self, NodeError> {
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
        let memory = Arc::new(store.clone());
        let chains = Chains::new(nodes, wallet.signer().clone(), max_gas_price_wei, memory);
        let ethereum = Arc::new(chains.clone());
        // Side by side: a plugin's probe waits for programs, and neither of these needs the other.
        let (monitor, (catalog, plugins)) = tokio::try_join!(
            async { Ok::<_, NodeError>(Monitor::start(vm_data_dir).await?) },
            async {
                let setting_up =
                    tokio::task::spawn_blocking(|| Catalog::new(catalog_config, state, ethereum));
                let catalog = setting_up.await??;
                let plugins = plugins::load(&catalog, settings.vm_backend.as_deref()).await?;
                Ok((catalog, plugins))
            },
        )?;

        let proxy = Proxy::new(ProxyConfig {
            bind: settings.ports.bind,
            max_connections_per_vm: settings.ports.max_connections_per_vm,
            max_connections: connections.of_ssh,
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
        let (offer, offering) = offer::sources(
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
        let verifiers = Verifiers::new(settings.payments.verifier.clone());
        for verifier in plugins.verifiers {
            verifiers.install(verifier);
        }
        for (name, reason) in plugins.unusable_verifiers {
            verifiers.remove(&name, reason);
        }
        if verifiers.are_wanted()
            && let Err(missing) = verifiers.current()
        {
            tracing::error!("no machine that has to be paid for can be made: {missing}");
        }
        for name in advertising.missing() {
            tracing::error!(
                plugin.name = name,
                "this provider should be listed by {name}, which is no plugin that can be used; see golem-provider plugin list"
            );
        }
        let payment_rules = LiveRules::new(PaymentRules::from(&settings.payments));
        let collector = Collector::new(CollectorParts {
            store: store.clone(),
            verifiers: verifiers.clone(),
            purse: Arc::new(chains),
            rules: payment_rules.watch(),
            prices: pricing.watch(),
            glm: settings.chains.glm_token.as_deref().and_then(|token| token.parse().ok()),
        });
        let gatekeeper = Gatekeeper::open(wallet.address(), store.clone()).await?;
        let api = ApiState::new(settings, wallet.provider_id(), vms.clone(), pricing.watch())
            .with_reachability(reachability.clone())
            .with_advertising(advertising.clone())
            .with_gatekeeper(gatekeeper);
        let streams = verifiers.are_wanted().then(|| {
            let parts = StreamsParts {
                store: store.clone(),
                verifiers: verifiers.clone(),
                payee: wallet.address(),
                prices: pricing.watch(),
                price_memory: settings.payments.price_memory,
                rules: payment_rules.watch(),
            };
            Streams::new(&settings.payments, parts)
        });
        let api = match &streams {
            Some(streams) => api.with_streams(streams.clone(), collector.clone()),
            None => api,
        };
        let api = Api::new(api);
        let catalog = Arc::new(catalog);
        let parts = ObserverParts {
            catalog: Arc::clone(&catalog),
            vms: vms.clone(),
            proxy: proxy.clone(),
            advertising: advertising.clone(),
            verifiers: verifiers.clone(),
            streams: streams.clone(),
            prices: pricing.watch(),
            reachability,
        };
        let observer = Observer::new(settings, Rules::from(&settings.resources).minimums, parts);
        let desk = PluginDesk::new(catalog, vms.clone(), advertising.clone(), verifiers);
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
            streams,
            beside,
            desk,
            pricing,
            price_source,
            payment_rules,
            collector,
            observer,
            admin,
        })
    }

    /// # Errors
    /// Nobody could check the ports, and the operator wants no provider then.
    async fn serve(
        self,
        settings: &Settings,
        connections: process::Connections,
        stop: CancellationToken,
    ) -> Result<(), NodeError> {
        let Self {
            begun,
            listener,
            api,
            store,
            proxy,
            vms,
            verifier,
            advertising,
            streams,
            mut beside,
            desk,
            pricing,
            price_source,
            payment_rules,
            collector,
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
        if let Some(streams) = streams {
            let machines = Arc::new(adapters::RentedMachines(vms.clone()));
            beside.spawn(streams.watch_over(machines, stop.clone()));
        }
        beside.spawn(admin::watch(desk.clone(), stop.clone()));
        if let Some(source) = price_source {
            beside.spawn(pricing.clone().follow(source, stop.clone()));
        }
        beside.spawn(collector.clone().run(stop.clone()));
        let mut answering = JoinSet::new();
        if let Some(admin) = admin {
            let doors = Doors {
                desk,
                vms: vms.clone(),
                pricing,
                collector: collector.clone(),
                payment_rules,
                observer,
                ending: ending.clone(),
            };
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
        let server = Server {
            max_connections: connections.of_api,
            grace: shutdown::API,
            ..Server::default()
        };
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

fn vm_config(settings: &Settings) -> VmServiceConfig {
    VmServiceConfig {
        default_image: settings.vms.default_image.clone(),
        max_vms: settings.vms.max_vms,
        stop_grace: STOP_GRACE,
        deadlines: Deadlines { boot: settings.vms.launch_timeout, ..Deadlines::default() },
        ..VmServiceConfig::default()
    }
}
