//! What belongs to one call: the data that the imports work on, and the limits that the call runs under.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cap_std::fs::Dir;
use wasmtime::{ResourceLimiter, StoreLimits, StoreLimitsBuilder, component::ResourceTable};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};

use super::{
    bindings::Error,
    engine::MEMORY_CEILING_BYTES,
    imports::{self, Services, http::Downloads, log::LogBudget},
    manifest::{Grants, Refused},
    vm_backend::ProgressSink,
};

/// What all calls of one plugin share.
pub(super) struct PluginContext {
    pub name: String,
    pub grants: Grants,
    /// Valid JSON, an object.
    pub settings: String,
    pub directory: PluginDirectory,
    pub downloads: Downloads,
    pub services: Arc<Services>,
}

/// The plugin's own directory, as a capability and as a path for programs.
pub(super) struct PluginDirectory {
    pub path: PathBuf,
    pub handle: Arc<Dir>,
}

impl PluginDirectory {
    /// Makes the directory, for this user alone, and opens it. Clears away what was half written when the provider died, so
    /// nothing may be writing there yet.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let path = path.canonicalize()?;
        let handle = Dir::open_ambient_dir(&path, cap_std::ambient_authority())?;
        imports::files::remove_partial_files(&handle)?;
        Ok(Self { path, handle: Arc::new(handle) })
    }
}

/// How long a call may take, and how much of that its guest may compute.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallLimits {
    /// From beginning to end, waiting included.
    pub deadline: Duration,
    /// Time in the guest's own code. Waiting for the host does not count.
    pub computing: Duration,
}

/// The data of one call's store.
pub(super) struct CallState {
    pub plugin: Arc<PluginContext>,
    pub progress: Option<ProgressSink>,
    pub log: LogBudget,
    /// The last words of a guest that panicked.
    pub panic: Option<String>,
    pub memory: MemoryLimit,
    pub resources: ResourceTable,
    /// Made when a guest first uses WASI: most never do, and making it takes longer than a short call.
    wasi: Option<WasiCtx>,
}

impl CallState {
    pub fn new(plugin: Arc<PluginContext>, progress: Option<ProgressSink>) -> Self {
        Self {
            plugin,
            progress,
            log: LogBudget::default(),
            panic: None,
            memory: MemoryLimit::default(),
            resources: ResourceTable::new(),
            wasi: None,
        }
    }
}

impl WasiView for CallState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let plugin = &self.plugin;
        let ctx = self.wasi.get_or_insert_with(|| {
            let mut builder = WasiCtx::builder();
            builder.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
            let opened =
                builder.preopened_dir(&plugin.directory.path, ".", FsPerms::ReadWrite);
            if let Err(error) = opened {
                // The guest then sees no directory at all, and its own calls tell it so.
                tracing::warn!(plugin.name = %plugin.name, "cannot open the plugin's directory for WASI: {error:#}");
            }
            builder.build()
        });
        WasiCtxView { ctx, table: &mut self.resources }
    }
}

/// Bounds what one call may allocate, and remembers what was asked for beyond it.
pub(super) struct MemoryLimit {
    limits: StoreLimits,
    pub refused_bytes: Option<usize>,
}

impl Default for MemoryLimit {
    fn default() -> Self {
        let limits = StoreLimitsBuilder::new()
            .memory_size(MEMORY_CEILING_BYTES)
            .table_elements(100_000)
            .trap_on_grow_failure(true)
            .build();
        Self { limits, refused_bytes: None }
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > MEMORY_CEILING_BYTES {
            self.refused_bytes = Some(desired);
        }
        self.limits.memory_growing(current, desired, maximum)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::PermissionDenied(refused.to_string())
    }
}
