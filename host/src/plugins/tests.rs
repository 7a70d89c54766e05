//! The engine against a component that misbehaves on request (`tests/plugins/misbehaving`).

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::{
    StateError, StateStore,
    catalog::{Catalog, CatalogConfig, PluginError},
    vm_backend::{BackendError, BackendErrorKind, Instance, VmBackend},
};

#[derive(Default)]
struct MemoryState(Mutex<BTreeMap<(String, String), Vec<u8>>>);

#[async_trait]
impl StateStore for MemoryState {
    async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.0.lock().unwrap().get(&(plugin.into(), key.into())).cloned())
    }
    async fn set(
        &self,
        plugin: &str,
        key: &str,
        value: Vec<u8>,
        _room_bytes: u64,
    ) -> Result<bool, StateError> {
        self.0.lock().unwrap().insert((plugin.into(), key.into()), value);
        Ok(true)
    }
    async fn delete(&self, plugin: &str, key: &str) -> Result<(), StateError> {
        self.0.lock().unwrap().remove(&(plugin.into(), key.into()));
        Ok(())
    }
    async fn keys(&self, plugin: &str, prefix: &str) -> Result<Vec<String>, StateError> {
        let state = self.0.lock().unwrap();
        let keys = state.keys().filter(|(owner, key)| owner == plugin && key.starts_with(prefix));
        Ok(keys.map(|(_, key)| key.clone()).collect())
    }
}

struct Bench {
    directory: tempfile::TempDir,
    catalog: Catalog,
}

fn misbehaving_wasm() -> Vec<u8> {
    let file = Path::new(env!("GOLEM_PLUGINS_BUILD_DIR")).join("misbehaving.wasm");
    std::fs::read(&file).unwrap_or_else(|error| {
        panic!("{}: {error}; build the test plugins with `cargo xtask plugins`", file.display())
    })
}

fn bench() -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let plugin_dir = directory.path().join("plugins");
    std::fs::create_dir(&plugin_dir).unwrap();
    std::fs::write(plugin_dir.join("misbehaving.wasm"), misbehaving_wasm()).unwrap();
    let config = CatalogConfig {
        plugin_dir,
        vm_data_dir: directory.path().join("vms"),
        cache_dir: directory.path().join("cache"),
        settings: BTreeMap::new(),
    };
    let catalog = Catalog::new(config, Arc::new(MemoryState::default())).unwrap();
    Bench { directory, catalog }
}

impl Bench {
    async fn load(&self) -> Arc<dyn VmBackend> {
        self.catalog.load_vm_backend("misbehaving").await.unwrap().backend
    }
}

async fn ask(backend: &Arc<dyn VmBackend>, request: &str) -> Result<Instance, BackendError> {
    backend.inspect(request).await
}

async fn refusal(request: &str) -> BackendError {
    let bench = bench();
    let own = bench.directory.path().join("vms/misbehaving");
    let backend = bench.load().await;
    std::os::unix::fs::symlink("/etc/passwd", own.join("link")).unwrap();
    let error = ask(&backend, request).await.unwrap_err();
    ask(&backend, "well").await.expect("the plugin works on after a refusal");
    error
}

#[tokio::test]
async fn a_panic_costs_its_own_call_and_its_message_reaches_the_operator() {
    let error = refusal("panic").await;
    assert_eq!(error.kind, BackendErrorKind::Internal);
    assert!(error.message.contains("`inspect` of the VM backend misbehaving failed"), "{error}");
    assert!(error.message.contains("the disk of panic is on fire"), "{error}");
}

#[tokio::test]
async fn a_trap_costs_its_own_call() {
    let error = refusal("trap").await;
    assert_eq!(error.kind, BackendErrorKind::Internal);
    assert!(error.message.contains("unreachable"), "{error}");
}

#[tokio::test]
async fn an_overflowing_stack_costs_its_own_call() {
    assert_eq!(refusal("overflow").await.kind, BackendErrorKind::Internal);
}

#[tokio::test]
async fn a_plugin_that_allocates_without_end_is_stopped_at_the_ceiling() {
    let error = refusal("allocate").await;
    assert_eq!(error.kind, BackendErrorKind::ResourceExhausted);
    assert!(error.message.contains("bytes of memory"), "{error}");
}

/// On one thread, so that a guest that never gave way would block everything else.
#[tokio::test(flavor = "current_thread")]
async fn a_plugin_that_loops_is_stopped_while_others_are_served() {
    let bench = bench();
    let backend = bench.load().await;
    let looping = tokio::spawn({
        let backend = Arc::clone(&backend);
        async move { ask(&backend, "loop").await }
    });
    let mut served = 0;
    while !looping.is_finished() {
        ask(&backend, "well").await.unwrap();
        served += 1;
    }
    let error = looping.await.unwrap().unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::DeadlineExceeded);
    assert!(error.message.contains("computed for more than"), "{error}");
    assert!(served > 10, "only {served} calls were served beside the loop");
}

#[tokio::test]
async fn waiting_does_not_count_as_computing() {
    let bench = bench();
    let backend = bench.load().await;
    let naps = (0..20).map(|_| ask(&backend, "nap"));
    for nap in futures_util::future::join_all(naps).await {
        nap.unwrap();
    }
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_ends() {
    let bench = bench();
    let backend = bench.load().await;
    // More than there are places in the pool: if dropped calls kept theirs, the last ones would not get any.
    for _ in 0..4 {
        let calls = (0..60).map(|_| ask(&backend, "sleep"));
        let all = futures_util::future::join_all(calls);
        assert!(tokio::time::timeout(Duration::from_millis(100), all).await.is_err());
    }
    ask(&backend, "well").await.unwrap();
}

#[tokio::test]
async fn every_call_runs_in_a_fresh_instance() {
    let bench = bench();
    let backend = bench.load().await;
    for _ in 0..10 {
        assert_eq!(ask(&backend, "remember").await.unwrap().detail.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn a_flood_of_log_lines_does_not_hold_the_call() {
    let bench = bench();
    let backend = bench.load().await;
    let begin = Instant::now();
    ask(&backend, "flood").await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_program_that_was_not_granted_is_refused_with_the_way_to_grant_it() {
    let error = refusal("program").await;
    assert_eq!(error.kind, BackendErrorKind::PermissionDenied);
    assert!(error.message.contains("add programs = [\"sh\"] under [grants] in "), "{error}");
    assert!(error.message.ends_with("plugins/misbehaving.toml"), "{error}");
    assert_eq!(refusal("other-program").await.kind, BackendErrorKind::PermissionDenied);
}

#[tokio::test]
async fn no_path_leads_out_of_the_plugins_directory() {
    assert_eq!(refusal("dotdot").await.kind, BackendErrorKind::InvalidArgument);
    assert_eq!(refusal("absolute").await.kind, BackendErrorKind::InvalidArgument);
    let error = refusal("symlink").await;
    assert!(
        matches!(error.kind, BackendErrorKind::PermissionDenied | BackendErrorKind::Internal),
        "{error:?}"
    );
    assert_eq!(refusal("import").await.kind, BackendErrorKind::PermissionDenied);
}

#[tokio::test]
async fn servers_of_the_machine_are_out_of_reach_without_a_grant() {
    assert_eq!(refusal("loopback").await.kind, BackendErrorKind::PermissionDenied);
    let socket = refusal("socket").await.kind;
    assert!(
        matches!(socket, BackendErrorKind::PermissionDenied | BackendErrorKind::NotFound),
        "{socket:?}"
    );
}

#[tokio::test]
async fn a_granted_program_runs() {
    let bench = bench();
    let file = bench.directory.path().join("plugins/misbehaving.toml");
    std::fs::write(file, "[grants]\nprograms = [\"sh\"]\n").unwrap();
    ask(&bench.load().await, "program").await.unwrap();
}

#[tokio::test]
async fn a_granted_file_is_imported_only_with_the_right_checksum() {
    let bench = bench();
    let file = bench.directory.path().join("plugins/misbehaving.toml");
    std::fs::write(file, "[grants]\nfiles = [\"/etc/passwd\"]\n").unwrap();
    let error = ask(&bench.load().await, "import").await.unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Internal);
    assert!(error.message.contains("its SHA-256 is "), "{error}");
    let own = bench.directory.path().join("vms/misbehaving");
    assert_eq!(std::fs::read_dir(own).unwrap().count(), 0, "something of it was left behind");
}

#[tokio::test]
async fn what_is_no_component_is_refused_with_its_place() {
    let bench = bench();
    let file = bench.directory.path().join("plugins/garbage.wasm");
    std::fs::write(&file, "no wasm").unwrap();
    let error = bench.catalog.load_vm_backend("garbage").await.err().unwrap();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    let error = bench.catalog.load_vm_backend("absent").await.err().unwrap();
    assert!(error.to_string().contains("known are qemu, garbage, misbehaving"), "{error}");
}

#[tokio::test]
async fn a_component_for_a_newer_contract_is_refused_with_both_versions() {
    let bench = bench();
    let ours = b"golem:provider/vms@0.1.0";
    let newer = b"golem:provider/vms@9.1.0";
    let mut bytes = misbehaving_wasm();
    let mut changed = 0;
    for at in 0..bytes.len() - ours.len() {
        if bytes[at..].starts_with(ours) {
            bytes[at..at + ours.len()].copy_from_slice(newer);
            changed += 1;
        }
    }
    assert!(changed > 0);
    std::fs::write(bench.directory.path().join("plugins/newer.wasm"), bytes).unwrap();
    let error = bench.catalog.load_vm_backend("newer").await.err().unwrap().to_string();
    assert!(
        error.contains("golem:provider@9.1.0") && error.contains("golem:provider@0.1.0"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_under_another_name_than_the_plugins_own_is_refused() {
    let bench = bench();
    let plugins = bench.directory.path().join("plugins");
    std::fs::copy(plugins.join("misbehaving.wasm"), plugins.join("qemu.wasm")).unwrap();
    let error = bench.catalog.load_vm_backend("qemu").await.err().unwrap();
    assert!(
        matches!(&error, PluginError::OtherName { found, .. } if found == "misbehaving"),
        "{error}"
    );
}

#[tokio::test]
async fn compiled_code_is_kept_and_a_damaged_cache_does_no_harm() {
    let bench = bench();
    bench.load().await;
    let cache = bench.directory.path().join("cache");
    let compiled: Vec<_> =
        std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(compiled.len(), 1, "{compiled:?}");
    std::fs::write(&compiled[0], "damaged").unwrap();
    ask(&bench.load().await, "well").await.unwrap();
    // Code that others could have written is not run, whatever it is.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&compiled[0], std::fs::Permissions::from_mode(0o666)).unwrap();
    ask(&bench.load().await, "well").await.unwrap();
    let mode = std::fs::metadata(&compiled[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o022, 0, "the file was not replaced");
}
