//! The engine against a component that misbehaves on request (`tests/plugins/misbehaving`).

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::instrument::WithSubscriber;

use super::{
    catalog::{Catalog, CatalogConfig, Loaded, PluginError},
    failure::{Failure, FailureKind},
    harness::MemoryState,
    health,
    imports::ethereum::NoEthereum,
    limits::{self, CallLimits},
    vm_backend::{Instance, VmBackend},
};
use crate::telemetry::testing::Lines;

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

/// Compiled once for all tests: a debug build takes its time for that.
fn shared_cache() -> PathBuf {
    Path::new(env!("GOLEM_PLUGINS_BUILD_DIR")).join("compiled/plugins")
}

fn bench() -> Bench {
    bench_with_cache(Some(shared_cache()))
}

/// Without one, compiled code is kept in the bench's own directory.
fn bench_with_cache(cache: Option<PathBuf>) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let plugin_dir = directory.path().join("plugins");
    std::fs::create_dir(&plugin_dir).unwrap();
    std::fs::write(plugin_dir.join("misbehaving.wasm"), misbehaving_wasm()).unwrap();
    let config = CatalogConfig {
        plugin_dir,
        vm_data_dir: directory.path().join("vms"),
        cache_dir: cache.unwrap_or_else(|| directory.path().join("cache")),
        settings: BTreeMap::new(),
    };
    let catalog =
        Catalog::new(config, Arc::new(MemoryState::default()), Arc::new(NoEthereum)).unwrap();
    Bench { directory, catalog }
}

impl Bench {
    /// The plugin's configuration file.
    fn with(self, configuration: &str) -> Self {
        let file = self.directory.path().join("plugins/misbehaving.toml");
        std::fs::write(file, configuration).unwrap();
        self
    }

    /// No call takes or computes longer than this.
    fn hurried(mut self, deadline: Duration) -> Self {
        let limits = self.catalog.limits_mut();
        for limits in [&mut limits.describe, &mut limits.probe, &mut limits.look_up] {
            *limits = CallLimits { deadline, computing: deadline.min(limits.computing) };
        }
        self
    }

    fn own(&self, name: &str) -> PathBuf {
        self.directory.path().join("vms/misbehaving").join(name)
    }

    fn plugin_file(&self, name: &str) -> PathBuf {
        self.directory.path().join("plugins").join(name)
    }

    async fn load(&self) -> Arc<dyn VmBackend> {
        match self.catalog.load_named("misbehaving").await.unwrap().plugin {
            Loaded::VmBackend(backend) => backend,
            _ => panic!("it is a backend"),
        }
    }

    /// Why a plugin of this name and content is not loaded.
    async fn load_error(&self, name: &str, component: &[u8]) -> String {
        std::fs::write(self.plugin_file(&format!("{name}.wasm")), component).unwrap();
        self.catalog.load_named(name).await.err().unwrap().to_string()
    }

    /// What a request fails with, while the plugin works on.
    async fn refusal(&self, request: &str) -> Failure {
        let backend = self.load().await;
        let error = ask(&backend, request).await.unwrap_err();
        ask(&backend, "well").await.expect("the plugin works on after a refusal");
        error
    }
}

async fn ask(backend: &Arc<dyn VmBackend>, request: &str) -> Result<Instance, Failure> {
    backend.inspect(request).await
}

async fn refusal(request: &str) -> Failure {
    bench().refusal(request).await
}

/// What the provider has written for the operator while `work` ran.
async fn log_of<T>(work: impl Future<Output = T>) -> (T, String) {
    let log = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .with_writer(log.writer())
        .finish();
    let result = work.with_subscriber(subscriber).await;
    (result, log.text())
}

// --- Calls that go wrong ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_panic_costs_its_own_call_and_its_message_reaches_the_operator() {
    let error = refusal("panic").await;
    assert_eq!(error.kind, FailureKind::Internal);
    assert!(error.message.contains("`inspect` of the VM backend misbehaving failed"), "{error}");
    assert!(error.message.contains("the disk of panic is on fire"), "{error}");
    let error = refusal("long-panic").await;
    assert!(error.message.len() < 5000 && error.message.contains("on fire"), "{error}");
}

#[tokio::test]
async fn the_operator_reads_which_call_of_which_plugin_failed_why_and_what_to_do() {
    let bench = bench();
    let backend = bench.load().await;
    let (answer, log) = log_of(ask(&backend, "trap")).await;
    answer.unwrap_err();
    let line = "`inspect` of the plugin misbehaving failed: it broke off: wasm trap: wasm `unreachable` instruction executed; if this goes on, update the plugin or report it to its author";
    assert!(log.contains(line), "{log}");
    assert!(log.contains("ended here") && log.contains("deed"), "no place in: {log}");
}

#[tokio::test]
async fn a_trap_costs_its_own_call() {
    let error = refusal("trap").await;
    assert_eq!(error.kind, FailureKind::Internal);
    assert!(error.message.contains("unreachable"), "{error}");
}

#[tokio::test]
async fn an_overflowing_stack_costs_its_own_call() {
    assert_eq!(refusal("overflow").await.kind, FailureKind::Internal);
}

#[tokio::test]
async fn a_plugin_that_allocates_without_end_is_stopped_at_the_ceiling() {
    let error = refusal("allocate").await;
    assert_eq!(error.kind, FailureKind::ResourceExhausted);
    assert!(error.message.contains("bytes of memory, which is more than the 128 MiB"), "{error}");
}

#[tokio::test]
async fn the_calls_of_a_plugin_have_a_share_of_memory_together_and_give_it_back() {
    let bench = bench();
    let backend = bench.load().await;
    let calls = futures_util::future::join_all((0..8).map(|_| ask(&backend, "hold-memory"))).await;
    let refused: Vec<_> = calls.into_iter().filter_map(Result::err).collect();
    assert!((1..8).contains(&refused.len()), "{refused:?}");
    for error in refused {
        assert_eq!(error.kind, FailureKind::ResourceExhausted);
        assert!(error.message.contains("together would have more than the 512 MiB"), "{error}");
    }
    ask(&backend, "hold-memory").await.unwrap();
}

#[tokio::test]
async fn what_a_guest_hands_over_at_once_is_bounded() {
    for request in ["megabytes", "write-megabytes"] {
        let error = refusal(request).await;
        assert_eq!(error.kind, FailureKind::ResourceExhausted);
        assert!(error.message.contains("it handed over more than 8 MiB at once"), "{error}");
    }
    let bench = bench().with("[settings]\ninspect-all = \"million\"\n");
    let error = bench.load().await.inspect_all().await.unwrap_err();
    assert!(error.message.contains("`inspect-all` of the VM backend misbehaving"), "{error}");
    assert_eq!(error.kind, FailureKind::ResourceExhausted);
}

#[tokio::test]
async fn longer_lists_than_make_sense_are_a_fault_of_the_plugin() {
    let bench = bench().with("[settings]\nimages = \"many\"\ninspect-all = \"many\"\n");
    let backend = bench.load().await;
    let error = backend.inspect_all().await.unwrap_err().message;
    assert_eq!(
        error,
        "the VM backend misbehaving answered 20000 machines, of which 10000 are taken; this is a fault of the plugin: update it or report it to its author"
    );
    let error = backend.images().await.unwrap_err().message;
    assert!(error.contains("answered 2000 images, of which 1000 are taken"), "{error}");
}

#[tokio::test]
async fn texts_of_a_plugin_are_cut_and_cannot_forge_lines() {
    let bench = bench();
    let backend = bench.load().await;
    let detail = ask(&backend, "long-detail").await.unwrap().detail.unwrap();
    assert!(detail.len() < 5000 && detail.ends_with(" …"), "{} bytes", detail.len());
    let detail = ask(&backend, "forged-detail").await.unwrap().detail.unwrap();
    assert_eq!(detail, "fine 2030-01-01 ERROR lost");
    let error = ask(&backend, "long-error").await.unwrap_err();
    assert!(error.message.len() < 5000 && error.message.ends_with(" …"));
    let (answer, log) = log_of(ask(&backend, "forged-line")).await;
    answer.unwrap();
    assert!(!log.contains("\n2030") && !log.contains('\x1b'), "{log:?}");
    assert!(log.contains("harmless 2030-01-01 ERROR the provider is"), "{log:?}");
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
    assert_eq!(error.kind, FailureKind::DeadlineExceeded);
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
async fn waiting_does_not_count_as_computing_however_often_a_guest_wakes_up() {
    let mut bench = bench();
    // The 60 naps take three times as long, and each is longer than the time between two looks at the guest.
    bench.catalog.limits_mut().look_up.computing = Duration::from_millis(300);
    ask(&bench.load().await, "naps").await.unwrap();
}

/// With as few threads as a small machine has, and more calls that never end than there are threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_never_end_leave_the_other_tasks_their_time() {
    let bench = bench().hurried(Duration::from_secs(2));
    let backend = bench.load().await;
    let loops: Vec<_> = (0..30)
        .map(|_| {
            let backend = Arc::clone(&backend);
            tokio::spawn(async move { ask(&backend, "loop").await })
        })
        .collect();
    let mut longest = Duration::ZERO;
    while !loops.iter().all(tokio::task::JoinHandle::is_finished) {
        let begin = Instant::now();
        tokio::spawn(tokio::task::yield_now()).await.unwrap();
        longest = longest.max(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(longest < Duration::from_secs(1), "a task had to wait for {longest:?}");
    for call in loops {
        assert_eq!(call.await.unwrap().unwrap_err().kind, FailureKind::DeadlineExceeded);
    }
}

#[tokio::test]
async fn a_call_that_waits_for_ever_is_given_up() {
    let bench = bench().hurried(Duration::from_millis(400));
    let backend = bench.load().await;
    let _listener = std::os::unix::net::UnixListener::bind(bench.own("own.sock")).unwrap();
    for request in ["sleep", "silent-server", "deaf-server"] {
        let error = ask(&backend, request).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::DeadlineExceeded, "{request}");
        assert_eq!(
            error.message,
            "`inspect` of the VM backend misbehaving failed: it took longer than 0.4 s and was given up",
            "{request}"
        );
    }
}

#[tokio::test]
async fn a_program_that_never_ends_is_killed_with_its_call() {
    let bench = bench().with("[grants]\nprograms = [\"sh\"]\n").hurried(Duration::from_millis(600));
    let error = bench.refusal("endless-program").await;
    assert_eq!(error.kind, FailureKind::DeadlineExceeded);
    for _ in 0..100 {
        if !runs_in(&bench.own("")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the program still runs");
}

/// Is there a process whose working directory is this one?
fn runs_in(directory: &Path) -> bool {
    let directory = directory.canonicalize().unwrap();
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|process| {
        std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == directory)
    })
}

#[tokio::test]
async fn calls_beyond_those_that_a_plugin_may_have_are_told_why_they_never_began() {
    let mut bench = bench();
    bench.catalog.limits_mut().probe.deadline = Duration::from_secs(2);
    let backend = bench.load().await;
    let sleeping = tokio::spawn({
        let backend = Arc::clone(&backend);
        async move {
            let calls = (0..limits::CALLS_PER_PLUGIN).map(|_| ask(&backend, "sleep"));
            futures_util::future::join_all(calls).await
        }
    });
    tokio::task::yield_now().await;
    let error = backend.limits().await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Unavailable);
    assert_eq!(
        error.message,
        "`limits` of the VM backend misbehaving failed: it could not begin within 2 s, because 64 calls of it were under way"
    );
    sleeping.abort();
    assert!(sleeping.await.is_err_and(|error| error.is_cancelled()));
    backend.limits().await.unwrap();
}

#[tokio::test]
async fn connections_that_are_never_closed_are_bounded_and_closed_with_the_call() {
    let bench = bench();
    let backend = bench.load().await;
    let _listener = std::os::unix::net::UnixListener::bind(bench.own("own.sock")).unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..20 {
        let error = ask(&backend, "hoard-connections").await.unwrap_err();
        assert_eq!(error.kind, FailureKind::ResourceExhausted);
        assert!(error.message.contains("32 connections open already"), "{error}");
    }
    // Other tests of this program open files at the same time.
    assert!(open() < before + 400, "{} files were open, now {}", before, open());
}

#[tokio::test]
async fn programs_that_a_call_leaves_running_are_bounded() {
    let bench = bench().with("[grants]\nprograms = [\"sh\"]\n");
    let error = bench.refusal("spawn").await;
    assert_eq!(error.kind, FailureKind::ResourceExhausted);
    assert!(error.message.contains("left 16 programs running"), "{error}");
}

#[tokio::test]
async fn what_a_plugin_stores_in_the_database_is_bounded() {
    let error = refusal("fill-state").await;
    assert_eq!(error.kind, FailureKind::ResourceExhausted);
    assert!(error.message.contains("misbehaving keeps 16 MiB"), "{error}");
    assert_eq!(refusal("big-value").await.kind, FailureKind::InvalidArgument);
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
async fn a_flood_of_log_lines_is_cut_counted_and_does_not_hold_the_call() {
    let bench = bench();
    let backend = bench.load().await;
    let (answer, log) = log_of(ask(&backend, "flood")).await;
    answer.unwrap();
    assert_eq!(log.matches("flood ").count(), 300);
    assert!(log.contains("the plugin misbehaving logs too much; 9700 lines were not kept"));
    let floods = async {
        for _ in 0..20 {
            ask(&backend, "wide-flood").await.unwrap();
        }
    };
    let ((), log) = log_of(floods).await;
    assert!(log.len() < 2 << 20, "{} bytes were logged", log.len());
}

#[tokio::test]
async fn a_plugin_that_fails_again_and_again_does_not_fill_the_log() {
    let bench = bench();
    let backend = bench.load().await;
    let fail = async {
        for _ in 0..2000 {
            ask(&backend, "trap").await.unwrap_err();
        }
    };
    let ((), log) = log_of(fail).await;
    assert!(log.len() < 1 << 20, "{} bytes were logged", log.len());
}

#[tokio::test]
async fn a_plugin_that_fails_too_often_is_degraded_and_no_longer_called_for_a_while() {
    let bench = bench();
    let backend = bench.load().await;
    for _ in 0..health::FAILURES_IN_A_ROW {
        assert!(backend.degraded().is_empty());
        assert_eq!(ask(&backend, "trap").await.unwrap_err().kind, FailureKind::Internal);
    }
    let error = ask(&backend, "well").await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Unavailable);
    assert!(error.message.contains("`inspect` has failed 10 times in a row"), "{error}");
    let degraded = backend.degraded();
    assert_eq!((degraded.len(), degraded[0].function.as_str()), (1, "inspect"));
    backend.images().await.expect("other functions go on");
    backend.delete("well").await.expect("what undoes something goes on");
    let again = bench.load().await;
    ask(&again, "well").await.expect("another load begins anew");
}

// --- What was not granted --------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_program_that_was_not_granted_is_refused_with_the_way_to_grant_it() {
    let error = refusal("program").await;
    assert_eq!(error.kind, FailureKind::PermissionDenied);
    assert!(
        error.message.contains("golem-provider plugin grant misbehaving programs sh"),
        "{error}"
    );
    assert_eq!(refusal("other-program").await.kind, FailureKind::PermissionDenied);
    let error = refusal("program-with-long-name").await;
    assert_eq!(error.kind, FailureKind::PermissionDenied);
    assert!(error.message.len() < 5000);
}

#[tokio::test]
async fn no_path_leads_out_of_the_plugins_directory() {
    let bench = bench();
    let backend = bench.load().await;
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("kept"), "of somebody else").unwrap();
    std::os::unix::fs::symlink(outside.path().join("kept"), bench.own("link")).unwrap();
    std::os::unix::fs::symlink(outside.path(), bench.own("directory-link")).unwrap();
    for request in ["dotdot", "absolute", "rename-out", "download-out"] {
        let error = ask(&backend, request).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::InvalidArgument, "{request}: {error}");
        assert!(error.message.contains("leads out of the plugin's directory"), "{error}");
    }
    for (request, message) in [
        ("symlink", "cannot read link: a path led outside"),
        ("list-symlink", "cannot list directory-link: a path led outside"),
        // It is no directory that would be missing on the way.
        ("write-behind-symlink", "cannot write directory-link/x: File exists"),
        ("remove-behind-symlink", "cannot remove directory-link/kept: a path led outside"),
        ("rename-behind-symlink", "cannot rename mine: to directory-link/mine: a path led outside"),
        ("path-of-symlink", "cannot find link: a path led outside"),
    ] {
        let error = ask(&backend, request).await.unwrap_err();
        assert!(error.message.starts_with(message), "{request}: {error}");
    }
    let left: Vec<_> =
        outside.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["kept"]);
}

/// A link that is put in a path's place between the look at it and its use leads nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_changes_all_the_time_never_leads_out() {
    let bench = bench();
    let backend = bench.load().await;
    let outside = tempfile::tempdir().unwrap();
    let swap = bench.own("directory-link");
    std::fs::create_dir(bench.own("real")).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (ended, real, outside) =
            (Arc::clone(&ended), bench.own("real"), outside.path().to_owned());
        move || {
            while !ended.load(Ordering::Relaxed) {
                std::fs::rename(&real, &swap).unwrap();
                std::fs::rename(&swap, &real).unwrap();
                std::os::unix::fs::symlink(&outside, &swap).unwrap();
                std::fs::remove_file(&swap).unwrap();
            }
        }
    });
    for _ in 0..300 {
        // Either outcome is right, but nothing may arrive outside.
        let _ = ask(&backend, "write-behind-symlink").await;
    }
    ended.store(true, Ordering::Relaxed);
    // A write makes missing directories, which gets in the way of the other's renaming.
    let _ = swapper.join();
    assert_eq!(outside.path().read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn directories_cannot_be_put_into_each_other_without_end() {
    for request in ["deep-directories", "deeper-directories"] {
        let error = refusal(request).await;
        assert_eq!(error.kind, FailureKind::InvalidArgument, "{error}");
        assert!(error.message.contains("64"), "{error}");
    }
}

#[tokio::test]
async fn a_pipe_that_nobody_writes_to_does_not_hold_a_thread() {
    let bench = bench();
    let backend = bench.load().await;
    let made = std::process::Command::new("mkfifo").arg(bench.own("pipe")).status().unwrap();
    assert!(made.success());
    let asked = tokio::time::timeout(Duration::from_secs(10), ask(&backend, "pipe"));
    asked.await.expect("the call waits for the pipe").unwrap_err();
}

/// Answers whatever it is asked with this, and counts how often.
async fn http_server(
    answer: String,
) -> (SocketAddr, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, asked, serving)
}

fn redirect_to(url: &str) -> String {
    format!(
        "HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

#[tokio::test]
async fn no_redirect_leads_where_a_plugin_was_not_granted_to_go() {
    let (secret, asked, _serving) = http_server(HELLO.into()).await;
    for target in [
        format!("http://{secret}/"),
        format!("http://localhost:{}/", secret.port()),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "https://elsewhere.example/".to_owned(),
    ] {
        let (granted, _, _serving) = http_server(redirect_to(&target)).await;
        let bench = bench().with(&format!("[grants]\nhttp = [\"http://{granted}\"]\n"));
        let error = bench.refusal(&format!("fetch http://{granted}/")).await;
        assert_eq!(error.kind, FailureKind::PermissionDenied, "{target}: {error}");
        let origin = target.split('/').take(3).collect::<Vec<_>>().join("/");
        assert!(
            error.message.starts_with(&format!(
                "fetching from {origin} is not granted to the plugin misbehaving; to allow it: golem-provider plugin grant misbehaving http {origin}"
            )),
            "{error}"
        );
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_granted_name_does_not_lead_to_this_machine_and_a_granted_address_does() {
    let (server, asked, _serving) = http_server(HELLO.into()).await;
    let by_name = format!("http://localhost:{}", server.port());
    let bench = bench().with(&format!("[grants]\nhttp = [\"{by_name}\", \"http://{server}\"]\n"));
    let error = bench.refusal(&format!("fetch {by_name}/")).await;
    assert_eq!(error.kind, FailureKind::Unavailable);
    assert!(
        error.message.contains("localhost is an address of this machine or its local network; to allow it, grant it by its address"),
        "{error}"
    );
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    let answer = ask(&bench.load().await, &format!("fetch http://{server}/")).await.unwrap();
    assert_eq!(answer.detail.as_deref(), Some("hello"));
}

#[tokio::test]
async fn a_request_with_tens_of_thousands_of_headers_is_refused() {
    let bench = bench().with("[grants]\nhttp = [\"http://127.0.0.1:1\"]\n");
    let error = bench.refusal("many-headers").await;
    assert_eq!(error.kind, FailureKind::InvalidArgument);
    assert!(error.message.contains("at most 100 headers, this one 40000"), "{error}");
}

#[tokio::test]
async fn servers_of_the_machine_are_out_of_reach_without_a_grant() {
    let error = refusal("loopback").await;
    assert_eq!(error.kind, FailureKind::PermissionDenied);
    assert!(
        error.message.contains("golem-provider plugin grant misbehaving loopback true"),
        "{error}"
    );
}

/// Whether there is something or not, it is refused alike: a plugin must not learn what there is on the machine.
#[tokio::test]
async fn files_and_sockets_are_out_of_reach_without_a_grant_whether_they_exist_or_not() {
    let bench = bench().with("[grants]\nfiles = [\"/granted\"]\n");
    let backend = bench.load().await;
    let directory = tempfile::tempdir().unwrap();
    let there = directory.path().join("there.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&there).unwrap();
    let missing = directory.path().join("missing").display().to_string();
    let there = there.display().to_string();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    let link = link.display().to_string();
    for path in ["/etc/passwd", "/granted-not/image", &there, &missing, &link] {
        for (asked, doing, kind) in
            [("import", "reading", "files"), ("connect", "connecting to", "sockets")]
        {
            let error = ask(&backend, &format!("{asked} {path}")).await.unwrap_err();
            assert_eq!(error.kind, FailureKind::PermissionDenied, "{error}");
            let message = format!(
                "{doing} {path} is not granted to the plugin misbehaving; to allow it: golem-provider plugin grant misbehaving {kind} {path}"
            );
            assert_eq!(error.message, message);
        }
    }
    for missing in ["passwd", "no-such-file"] {
        let error = ask(&backend, &format!("import /granted/../etc/{missing}")).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::InvalidArgument, "{error}");
        assert!(error.message.ends_with("has `..` in it; say the path without"), "{error}");
    }
}

#[tokio::test]
async fn a_link_out_of_a_granted_directory_leads_nowhere() {
    let granted = tempfile::tempdir().unwrap();
    let root = granted.path().canonicalize().unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
    let bench = bench().with(&format!("[grants]\nfiles = [{root:?}]\n"));
    let error = bench.refusal(&format!("import {}", root.join("link").display())).await;
    assert_eq!(error.kind, FailureKind::PermissionDenied);
    assert!(error.message.starts_with("reading /etc/passwd is not granted"), "{error}");
}

/// A plugin chooses the paths it asks for, and an operator may paste what he reads into a shell.
#[tokio::test]
async fn the_way_to_grant_something_is_safe_to_paste() {
    let error = refusal("connect /run/x; touch /tmp/harm $(id) 'y'").await;
    assert!(
        error
            .message
            .ends_with(r#"plugin grant misbehaving sockets '/run/x; touch /tmp/harm $(id) '"'y'""#),
        "{error}"
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
    let error = ask(&bench.load().await, "import /etc/passwd").await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Internal);
    assert!(error.message.contains("its SHA-256 is "), "{error}");
    let own = bench.directory.path().join("vms/misbehaving");
    assert_eq!(std::fs::read_dir(own).unwrap().count(), 0, "something of it was left behind");
}

// --- Components that cannot be loaded ----------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_no_component_is_refused_with_its_place() {
    let bench = bench();
    let file = bench.directory.path().join("plugins/garbage.wasm");
    std::fs::write(&file, "no wasm").unwrap();
    let error = bench.catalog.load_named("garbage").await.err().unwrap();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    let error = bench.catalog.load_named("absent").await.err().unwrap();
    assert!(
        error.to_string().contains(
            "known are qemu, discovery-server, golem-base, stream-payment, garbage, misbehaving"
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_component_for_a_newer_contract_is_refused_with_both_versions() {
    let newer = with_other_names("golem:provider/vms@0.1.0", "golem:provider/vms@9.1.0");
    let error = bench().load_error("newer", &newer).await;
    assert!(
        error.contains("golem:provider@9.1.0") && error.contains("golem:provider@0.1.0"),
        "{error}"
    );
}

#[tokio::test]
async fn a_component_that_lacks_a_function_of_its_world_is_refused_with_the_function() {
    let lacking = with_other_names("await-ready", "await-reads");
    let error = bench().load_error("lacking", &lacking).await;
    for told in [
        "the plugin lacking from ",
        "does not fit the world `vm-backend` of golem:provider@0.1.0",
        "await-ready",
        "install a version of it that was made for this provider",
    ] {
        assert!(error.contains(told), "{error}");
    }
}

/// The misbehaving plugin, as if it had been made where something has another name, of the same length.
fn with_other_names(ours: &str, other: &str) -> Vec<u8> {
    assert_eq!(ours.len(), other.len());
    let mut bytes = misbehaving_wasm();
    let places: Vec<usize> = (0..bytes.len() - ours.len())
        .filter(|at| bytes[*at..].starts_with(ours.as_bytes()))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + ours.len()].copy_from_slice(other.as_bytes());
    }
    bytes
}

#[tokio::test]
async fn a_file_under_another_name_than_the_plugins_own_is_refused() {
    let bench = bench();
    let plugins = bench.directory.path().join("plugins");
    std::fs::copy(plugins.join("misbehaving.wasm"), plugins.join("qemu.wasm")).unwrap();
    let error = bench.catalog.load_named("qemu").await.err().unwrap();
    assert!(
        matches!(&error, PluginError::OtherName { found, .. } if found == "misbehaving"),
        "{error}"
    );
}

#[tokio::test]
async fn compiled_code_is_kept_and_a_damaged_cache_does_no_harm() {
    let bench = bench_with_cache(None);
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

#[tokio::test]
async fn a_core_module_is_refused_with_the_way_to_make_a_component_of_it() {
    let bench = bench();
    let error = bench.load_error("core", b"\0asm\x01\0\0\0").await;
    assert!(error.contains("the plugin core from "), "{error}");
    assert!(
        error.contains("core module and not a component")
            && error.contains("wasm-tools component new"),
        "{error}"
    );
}

#[tokio::test]
async fn a_component_that_exports_nothing_of_a_plugin_is_refused_with_what_it_lacks() {
    let bench = bench();
    let error = bench.load_error("empty", b"\0asm\x0d\0\x01\0").await;
    assert!(error.contains("it exports no interface that makes it a plugin"), "{error}");
    assert!(
        error.contains("golem:provider/vms@0.1.0")
            && error.contains("golem:provider/advertisements@0.1.0"),
        "{error}"
    );
}

#[tokio::test]
async fn a_component_that_is_larger_than_any_is_refused_without_being_read() {
    let bench = bench();
    let file = bench.plugin_file("huge.wasm");
    let sparse = std::fs::File::create(&file).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let error = bench.catalog.load_named("huge").await.err().unwrap();
    assert!(matches!(error, PluginError::TooLarge { .. }));
    assert_eq!(
        error.to_string(),
        format!("{} is larger than the 64 MiB that a plugin may have", file.display())
    );
}

/// Components within components, each a section of the one around it.
fn nested(depth: usize) -> Vec<u8> {
    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
    const COMPONENT_SECTION: u8 = 4;
    let mut inner = COMPONENT.to_vec();
    for _ in 0..depth {
        let mut outer = COMPONENT.to_vec();
        outer.push(COMPONENT_SECTION);
        let mut length = inner.len();
        while length > 0x7f {
            outer.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        outer.extend(inner);
        inner = outer;
    }
    inner
}

#[tokio::test]
async fn a_component_that_is_nested_without_end_is_refused() {
    let bench = bench();
    for depth in [500, 5_000] {
        let error = bench.load_error("nested", &nested(depth)).await;
        assert!(error.contains("the plugin nested from "), "{error}");
    }
}

/// A component of several core modules with a memory each.
fn with_memories(count: u8) -> Vec<u8> {
    // (module (memory 1))
    let module = b"\0asm\x01\0\0\0\x05\x03\x01\0\x01";
    let mut component = b"\0asm\x0d\0\x01\0".to_vec();
    component.extend([1, module.len() as u8]);
    component.extend(module);
    // So many core instances of module 0, without arguments.
    component.extend([2, 1 + 3 * count, count]);
    component.extend([0, 0, 0].repeat(count.into()));
    component
}

#[tokio::test]
async fn a_component_that_takes_more_of_the_pool_than_its_part_takes_nothing_of_it() {
    let bench = bench();
    for memories in [3, 40] {
        let error = bench.load_error("hoarder", &with_memories(memories)).await;
        assert!(error.contains("exports no interface that makes it a plugin"), "{error}");
    }
}

/// The plugin of the tests, with more core modules than fit into the pool.
fn outside_of_the_pool() -> Vec<u8> {
    let mut component = misbehaving_wasm();
    // An empty module, after the three that the component consists of.
    component.extend([1, 8]);
    component.extend(b"\0asm\x01\0\0\0");
    component.extend([2, 1 + 3 * 30, 30]);
    component.extend([0, 3, 0].repeat(30));
    component
}

#[tokio::test]
async fn a_plugin_outside_of_the_pool_lives_within_the_same_limits() {
    let bench = bench();
    std::fs::write(bench.plugin_file("misbehaving.wasm"), outside_of_the_pool()).unwrap();
    for (request, kind, reason) in [
        ("loop", FailureKind::DeadlineExceeded, "computed for more than"),
        ("allocate", FailureKind::ResourceExhausted, "more than the 128 MiB"),
        ("megabytes", FailureKind::ResourceExhausted, "handed over more than 8 MiB"),
        ("overflow", FailureKind::Internal, "broke off"),
    ] {
        let error = bench.refusal(request).await;
        assert_eq!(error.kind, kind, "{request}: {error}");
        assert!(error.message.contains(reason), "{request}: {error}");
    }
}

#[tokio::test]
async fn a_plugin_that_hangs_while_it_is_loaded_is_given_up_with_its_name() {
    for (call, deed) in [("describe", "sleep"), ("describe", "loop"), ("probe", "sleep")] {
        let bench = bench()
            .with(&format!("[settings]\n{call} = \"{deed}\"\n"))
            .hurried(Duration::from_millis(400));
        let error = bench.catalog.load_named("misbehaving").await.err().unwrap();
        assert!(matches!(error, PluginError::Silent { .. }));
        let error = error.to_string();
        assert!(error.starts_with("the plugin misbehaving does not answer: "), "{error}");
        assert!(
            error.contains(&format!("`{call}` of the VM backend misbehaving failed")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_plugin_that_describes_itself_without_end_is_refused() {
    for (call, deed, why) in [
        ("describe", "huge-schema", "answered a settings schema of "),
        ("describe", "deep-schema", "schema is no JSON, which is a fault of the plugin"),
        ("probe", "many-findings", "answered 2000 findings, of which 1000 are taken"),
    ] {
        let bench = bench().with(&format!("[settings]\n{call} = \"{deed}\"\n"));
        let loaded = bench.catalog.load_named("misbehaving").await;
        let error = loaded.err().unwrap_or_else(|| panic!("{deed} was taken")).to_string();
        assert!(error.contains("misbehaving") && error.contains(why), "{deed}: {error}");
        assert!(error.len() < 6000, "{deed}");
    }
}

#[tokio::test]
async fn a_schema_that_refers_to_itself_has_an_end() {
    let bench = bench().with("[settings]\ndescribe = \"endless-schema\"\n");
    ask(&bench.load().await, "well").await.unwrap();
}

// --- What a component says of itself in its manifest ----------------------------------------------------------------------

/// The component with this text in its manifest in place of another one, which is as long.
fn restated(stated: &str, instead: &str) -> Vec<u8> {
    assert_eq!(stated.len(), instead.len());
    let mut component = misbehaving_wasm();
    let found = component.windows(stated.len()).rposition(|window| window == stated.as_bytes());
    let at = found.expect("the manifest has another form");
    component[at..at + stated.len()].copy_from_slice(instead.as_bytes());
    component
}

#[tokio::test]
async fn a_component_is_introduced_by_its_manifest_and_refused_where_that_lies() {
    let bench = bench();
    let pretender = restated("name = \"misbehaving\"", "name = \"pretender-x\"");
    let file = bench.directory.path().join("somewhere.wasm");
    std::fs::write(&file, &pretender).unwrap();
    // None of its code has run, or it would have said otherwise.
    let about = bench.catalog.inspect(&file).await.unwrap();
    assert_eq!((about.name.as_str(), about.settings_schema), ("pretender-x", None));
    let error = bench.load_error("pretender-x", &pretender).await;
    assert!(
        error.contains("its name is `pretender-x`") && error.contains("`misbehaving`"),
        "{error}"
    );
    let error = bench.catalog.install(&file, &about.sha256, &[]).await.err().unwrap().to_string();
    assert!(error.contains("its name is `pretender-x`"), "{error}");

    let newer = restated("version = \"0.1.0\"", "version = \"9.1.0\"");
    let error = bench.load_error("misbehaving", &newer).await;
    assert!(error.contains("its version is `9.1.0`"), "{error}");
    std::fs::write(&file, restated("kind = \"vm-backend\"", "kind = \"vm-forward\"")).unwrap();
    let error = bench.catalog.inspect(&file).await.unwrap_err().to_string();
    assert!(error.contains("its kind is `vm-forward`"), "{error}");
}

#[tokio::test]
async fn a_component_without_a_manifest_says_itself_what_it_is() {
    let bench = bench();
    let nameless = restated("golem:plugin-manifest", "golem:plugin-nothing!");
    std::fs::write(bench.plugin_file("misbehaving.wasm"), &nameless).unwrap();
    let backend = bench.load().await;
    assert!(ask(&backend, "well").await.is_ok());
    let about = bench.catalog.inspect(&bench.plugin_file("misbehaving.wasm")).await.unwrap();
    assert_eq!(about.name, "misbehaving");
    assert!(about.settings_schema.is_some());
}

#[tokio::test]
async fn what_cannot_be_read_is_called_as_its_file_and_another_file_than_was_shown_is_refused() {
    let bench = bench();
    let file = bench.directory.path().join("my-backend.wasm");
    std::fs::write(&file, "no component").unwrap();
    let error = bench.catalog.inspect(&file).await.unwrap_err().to_string();
    assert!(error.contains("the plugin my-backend"), "{error}");

    std::fs::write(&file, misbehaving_wasm()).unwrap();
    let shown = bench.catalog.inspect(&file).await.unwrap().sha256;
    std::fs::write(&file, restated("version = \"0.1.0\"", "version = \"9.1.0\"")).unwrap();
    let error = bench.catalog.install(&file, &shown, &[]).await.err().unwrap().to_string();
    assert!(error.contains("another file than the one that was shown"), "{error}");
}
