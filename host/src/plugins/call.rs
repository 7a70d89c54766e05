//! What belongs to one call: the data that the imports work on, and the limits that the call runs under.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use cap_std::fs::Dir;
use wasmtime::{ResourceLimiter, component::ResourceTable};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};

use super::{
    bindings::Error,
    imports::{self, Services, fetched::Fetched, log::PluginLog, progress::ReportBudget},
    limits,
    manifest::{Grants, Refused},
    schema::Secrets,
    vm_backend::ProgressSink,
};

/// What all calls of one plugin share.
pub(super) struct PluginContext {
    pub name: String,
    pub grants: Grants,
    /// Valid JSON, an object.
    pub settings: String,
    pub directory: Arc<PluginDirectory>,
    pub fetched: Arc<Fetched>,
    pub log: PluginLog,
    pub memory: MemoryShare,
    pub services: Arc<Services>,
    /// What of the settings nobody may read. Known once the plugin has said what can be set.
    pub secrets: OnceLock<Secrets>,
}

impl PluginContext {
    /// A text of the plugin without its secrets.
    pub fn hide(&self, text: String) -> String {
        match self.secrets.get() {
            Some(secrets) => secrets.hide(text),
            None => text,
        }
    }
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

/// What an element of a table takes at most.
const TABLE_ELEMENT_BYTES: usize = 16;

/// The data of one call's store.
pub(super) struct CallState {
    pub plugin: Arc<PluginContext>,
    pub progress: Option<ProgressSink>,
    pub reports: ReportBudget,
    /// Lines logged up to now.
    pub log_lines: u32,
    /// Programs left running up to now.
    pub spawned: u32,
    /// The last words of a guest that panicked.
    pub panic: Option<String>,
    pub resources: ResourceTable,
    /// Of linear memory and tables.
    memory_bytes: usize,
    /// Made when a guest first uses WASI: most never do, and making it takes longer than a short call.
    wasi: Option<WasiCtx>,
}

impl CallState {
    pub fn new(plugin: Arc<PluginContext>, progress: Option<ProgressSink>) -> Self {
        let mut resources = ResourceTable::new();
        resources.set_max_capacity(limits::HANDLES_PER_CALL);
        Self {
            plugin,
            progress,
            reports: ReportBudget::default(),
            log_lines: 0,
            spawned: 0,
            panic: None,
            resources,
            memory_bytes: 0,
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
            builder.max_random_size(limits::RANDOM_BYTES as u64);
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

/// A call asked for more memory than there is for it.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(super) enum MemoryRefused {
    #[error(
        "it asked for {asked_bytes} bytes of memory, which is more than the {} MiB that a plugin's call may have",
        limits::MEMORY_PER_CALL_BYTES >> 20
    )]
    OfCall { asked_bytes: usize },
    #[error(
        "all calls of this plugin together would have more than the {} MiB of memory that a plugin may have",
        limits::MEMORY_PER_PLUGIN_BYTES >> 20
    )]
    OfPlugin,
}

/// Memory that all calls of a plugin have together.
#[derive(Debug, Default)]
pub(super) struct MemoryShare(AtomicUsize);

impl MemoryShare {
    fn take(&self, bytes: usize) -> bool {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= limits::MEMORY_PER_PLUGIN_BYTES;
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl CallState {
    fn grow(&mut self, more_bytes: usize) -> wasmtime::Result<bool> {
        let asked_bytes = self.memory_bytes.saturating_add(more_bytes);
        // An error ends the call and says why; a mere refusal would only make the guest panic somewhere.
        if asked_bytes > limits::MEMORY_PER_CALL_BYTES {
            return Err(MemoryRefused::OfCall { asked_bytes }.into());
        }
        if !self.plugin.memory.take(more_bytes) {
            return Err(MemoryRefused::OfPlugin.into());
        }
        self.memory_bytes = asked_bytes;
        Ok(true)
    }
}

impl Drop for CallState {
    fn drop(&mut self) {
        self.plugin.memory.give_back(self.memory_bytes);
    }
}

impl ResourceLimiter for CallState {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.grow(desired.saturating_sub(current))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.grow(desired.saturating_sub(current).saturating_mul(TABLE_ELEMENT_BYTES))
    }

    fn instances(&self) -> usize {
        limits::CORE_INSTANCES_PER_CALL
    }

    fn memories(&self) -> usize {
        limits::MEMORIES_PER_CALL
    }

    fn tables(&self) -> usize {
        limits::TABLES_PER_CALL
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::PermissionDenied(refused.to_string())
    }
}
