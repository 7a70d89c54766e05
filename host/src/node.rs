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

use async_trait::async_trait;
use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, AdminListener, PluginDesk},
    api::{Api, ApiState, Server},
    payments::wallet::{Wallet, WalletError},
    plugins::{
        Finding, StateError, StateStore,
        catalog::{Catalog, CatalogConfig, CatalogError, PluginError, ProbedBackend},
    },
    ports::{
        InvalidRange,
        verification::{Refused, Verifier, VerifierConfig},
    },
    proxy::{Proxy, ProxyConfig},
    resources::{Minimums, Monitor, MonitorError, Rules, Thresholds, Tracker},
    settings::{Environment, Settings},
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
    desk: PluginDesk,
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
        // Side by side: a plugin's probe waits for programs, and none of these needs another.
        let (wallet, monitor, (catalog, backends)) = tokio::try_join!(
            async {
                let opening = tokio::task::spawn_blocking(move || Wallet::open(&wallet_settings));
                Ok::<_, NodeError>(opening.await??)
            },
            async { Ok(Monitor::start(vm_data_dir).await?) },
            async {
                let setting_up =
                    tokio::task::spawn_blocking(|| Catalog::new(catalog_config, state));
                let catalog = setting_up.await??;
                let backends = load_backends(&catalog, settings.vm_backend.as_deref()).await?;
                Ok((catalog, backends))
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
            backends,
            resources: Tracker::new(rules(settings), monitor),
            ports: ports.clone(),
            config: vm_config(settings),
        })
        .await?;
        let verifier = Verifier::new(verifier, ports, {
            let proxy = proxy.clone();
            move || proxy.open_ports()
        });
        let state = ApiState::new(settings, wallet.provider_id(), vms.clone())
            .with_reachability(verifier.reachability());
        let api = Api::new(state);
        let desk = PluginDesk::new(Arc::new(catalog), vms.clone());
        let admin = AdminListener::bind(&settings.data_dir)
            // Machines matter more than the convenience of changing plugins without a restart.
            .inspect_err(|error| tracing::error!("{error}"))
            .ok();
        Ok(Self { begun, listener, api, store, proxy, vms, verifier, desk, admin })
    }

    /// # Errors
    /// Nobody could check the ports, and the operator wants no provider then.
    async fn serve(self, settings: &Settings, stop: CancellationToken) -> Result<(), NodeError> {
        let Self { begun, listener, api, store, proxy, vms, verifier, desk, admin } = self;
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
        let mut helpers = JoinSet::new();
        helpers.spawn(admin::watch(desk.clone(), stop.clone()));
        if let Some(admin) = admin {
            helpers.spawn(admin::serve(admin, desk, stop.clone()));
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
        // A change to the plugins that is under way is cut off between two steps, as by a crash.
        helpers.shutdown().await;
        let verified = verifying.await;
        let stop_vms = settings.vms.stop_on_exit;
        tracing::info!(
            "ending; running machines {}",
            if stop_vms { "are stopped" } else { "go on running" }
        );
        vms.shutdown(stop_vms, shutdown::VMS).await;
        proxy.shutdown(shutdown::PROXY).await;
        store.close().await;
        tracing::info!("ended");
        Ok(verified??)
    }
}

/// The wanted backend, else the first that can work here, as the default; every other plugin there is beside it, for the VMs
/// that it once made.
async fn load_backends(catalog: &Catalog, wanted: Option<&str>) -> Result<Backends, PluginError> {
    let mut loaded: Vec<ProbedBackend> = Vec::new();
    let mut default = None;
    let mut reasons = Vec::new();
    let names = catalog.names().await;
    if let Some(wanted) = wanted
        && !names.iter().any(|name| name == wanted)
    {
        // Says which ones are known.
        catalog.load_vm_backend(wanted).await?;
    }
    let loading = join_all(names.iter().map(|name| catalog.load_vm_backend(name))).await;
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
        let name_of = |finding: &Finding| format!("{name}: {}", finding.sentence());
        reasons.extend(probed.findings.iter().filter(|finding| finding.blocks()).map(name_of));
        if probed.works() && (is_wanted || (wanted.is_none() && default.is_none())) {
            tracing::info!(
                plugin.name = %name,
                plugin.version = %probed.about.version,
                "new machines are made by {name}"
            );
            default = Some(loaded.len());
        }
        loaded.push(probed);
    }
    Ok(match default {
        Some(index) => {
            let default = loaded.remove(index).backend;
            Backends::new(default, loaded.into_iter().map(|probed| probed.backend).collect())
        }
        None => {
            let reason = reasons.join("; ");
            tracing::error!("no machine can be made until this is mended: {reason}");
            let others = loaded.into_iter().map(|probed| probed.backend).collect();
            Backends::none(reason, others)
        }
    })
}

fn rules(settings: &Settings) -> Rules {
    let resources = &settings.resources;
    Rules {
        thresholds: Thresholds {
            cpu_percent: resources.cpu_threshold_percent,
            memory_percent: resources.memory_threshold_percent,
            storage_percent: resources.storage_threshold_percent,
        },
        minimums: Minimums {
            cpu_cores: resources.min_cpu_cores,
            memory_gb: resources.min_memory_gb,
            storage_gb: resources.min_storage_gb,
        },
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
