//! The suite on plugins that are known: one that keeps its promises, one that keeps none, and faults put into the first.

use std::{net::SocketAddr, path::Path, time::Duration};

use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinHandle};

use super::*;
use crate::plugins::{
    Ethereum, Failure, FailureKind,
    ethereum::{ChainFailure, Receipt, RpcRefusal, Transaction},
};

fn component(name: &str) -> Vec<u8> {
    let file = Path::new(env!("GOLEM_PLUGINS_BUILD_DIR")).join(format!("{name}.wasm"));
    std::fs::read(&file).unwrap_or_else(|error| {
        panic!("{}: {error}; build the test plugins with `cargo xtask plugins`", file.display())
    })
}

fn harness(name: &str, settings: serde_json::Value) -> Harness {
    Harness::new(component(name))
        .unwrap()
        .settings(settings)
        .compiled_in(Path::new(env!("GOLEM_PLUGINS_BUILD_DIR")).join("compiled/plugins"))
}

/// Ends with the test.
struct Greeter {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Greeter {
    async fn saying(greeting: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(greeting.as_bytes()).await;
            }
        });
        Self { address, accepting }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn run(harness: &Harness) -> Report {
    let observer: Observer = Arc::new(|event| {
        if let Event::Ended(outcome) = event {
            eprintln!("{outcome:?}");
        }
    });
    super::run(harness, None, observer, &CancellationToken::new()).await
}

/// The reason that this promise was not kept.
fn failure(report: &Report, call: &str, promise: &str) -> String {
    let outcome = report
        .outcomes
        .iter()
        .find(|outcome| outcome.check.call == call && outcome.check.promise.contains(promise))
        .unwrap_or_else(|| panic!("nothing of {call}: {promise}"));
    match &outcome.verdict {
        Verdict::Failed(reason) => reason.clone(),
        other => panic!("{call}: {promise}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_keeps_its_promises_passes_and_leaves_nothing() {
    let ssh = Greeter::saying("SSH-2.0-greeter\r\n").await;
    let settings =
        json!({ "ssh": ssh.address.to_string(), "boot-ms": 500, "shutdown-ms": 400, "step-ms": 5 });
    let harness = harness("paper", settings);
    let report = run(&harness).await;
    assert!(report.passed(), "{:?}", report.counts());
    assert!(report.outcomes.len() > 35, "only {} checks", report.outcomes.len());
    assert_eq!(report.plugin.unwrap().name, "paper");
    assert!(harness.root().join("vms/paper/machines").read_dir().unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_says_yes_to_everything_fails_with_what_it_said_instead() {
    let report = run(&harness("misbehaving", json!({}))).await;
    assert!(!report.passed() && !report.blocked);
    assert_eq!(
        failure(&report, "stop", "unknown id"),
        "`stop` of a machine that was never made answers a machine that is `running`, with no SSH endpoint; it should be `not-found`"
    );
    assert!(failure(&report, "create", "another spec").ends_with("it should be `already-exists`"));
    assert!(
        failure(&report, "inspect-all", "once").starts_with("it lists [] instead of [conformance-")
    );
    assert!(failure(&report, "await-ready", "endpoint").contains("without an SSH endpoint"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_traps_fails_its_check_and_the_others_go_on() {
    let report = run(&harness("misbehaving", json!({ "limits": "trap", "images": "panic" }))).await;
    assert!(failure(&report, "limits", "time").contains("wasm `unreachable` instruction"));
    assert!(failure(&report, "images", "at least one").contains("the disk of panic is on fire"));
    let of_create = report.outcomes.iter().filter(|outcome| outcome.check.call == "create");
    assert!(of_create.into_iter().any(|outcome| outcome.verdict
        == Verdict::NotApplicable("there is no image to make machines from".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_without_an_ssh_server_is_seen() {
    let web = Greeter::saying("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let report = run(&harness("paper", json!({ "ssh": web.address.to_string() }))).await;
    let reason = failure(&report, "await-ready", "server answers");
    assert!(
        reason.ends_with("which no SSH server does") || reason.contains("cannot be reached"),
        "{reason}"
    );
}

#[tokio::test]
async fn wrong_settings_end_the_suite_with_the_way_to_give_others() {
    let report = run(&harness("paper", json!({}))).await;
    assert!(!report.passed());
    let reason = failure(&report, "settings", "schema");
    assert!(reason.contains("ssh") && reason.contains("--settings"), "{reason}");
}

#[tokio::test]
async fn what_is_no_component_fails_the_first_check() {
    let report = run(&Harness::new("no wasm").unwrap()).await;
    assert!(!report.passed() && report.outcomes.len() == 1);
    assert!(failure(&report, "plugin", "component").contains("not a WebAssembly component"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_cannot_work_here_is_called_so() {
    let nothing_installed = crate::plugins::harness::Script::new();
    let report = run(&harness("qemu", json!({})).script(nothing_installed)).await;
    assert!(report.blocked && !report.passed());
    let remedy = report.findings[0].remedy.as_deref().unwrap();
    assert!(remedy.contains("apt install qemu"), "{remedy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_broken_off_removes_its_machines() {
    let ssh = Greeter::saying("SSH-2.0-greeter\r\n").await;
    let settings =
        json!({ "ssh": ssh.address.to_string(), "boot-ms": 600_000, "boot-timeout-ms": 900_000 });
    let harness = harness("paper", settings);
    let broken_off = CancellationToken::new();
    let when_it_boots = broken_off.clone();
    let observer: Observer = Arc::new(move |event| {
        if let Event::Begins(check) = event
            && check.call == "await-ready"
            && check.promise.starts_with("cut off")
        {
            let broken_off = when_it_boots.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                broken_off.cancel();
            });
        }
    });
    let report = run_vm_backend(&harness, None, observer, &broken_off).await;
    assert!(report.interrupted && !report.passed());
    assert!(harness.root().join("vms/paper/machines").read_dir().unwrap().next().is_none());
}

/// Each of these is a backend that keeps all promises but one.
#[tokio::test(flavor = "multi_thread")]
async fn each_promise_that_is_not_kept_is_noticed() {
    let ssh = Greeter::saying("SSH-2.0-greeter\r\n").await;
    for (fault, call, promise) in [
        ("delete-leaves-files", "delete", "no file, value or program"),
        ("create-notes-too-early", "create", "cut off in the middle"),
        ("create-takes-anything", "create", "another spec"),
        ("stop-does-not-wait", "stop", "ends with `stopped`"),
        ("ready-too-soon", "await-ready", "ends with `running`"),
        ("start-restarts", "start", "a machine that runs stays as it is"),
        ("list-misses-stopped", "inspect-all", "also a stopped one"),
        ("key-for-stopped", "add-ssh-key", "a stopped machine"),
    ] {
        // On a slow machine a short boot would be over before anybody could see that it was not waited for.
        let boot_ms = if fault == "ready-too-soon" { 10_000 } else { 400 };
        // And on a fast one a create would be whole before it is cut off.
        let step_ms = if fault == "create-notes-too-early" { 150 } else { 4 };
        let settings = json!({
            "ssh": ssh.address.to_string(), "boot-ms": boot_ms, "shutdown-ms": 100, "step-ms": step_ms, "fault": fault,
        });
        let report = run(&harness("paper", settings)).await;
        let reason = failure(&report, call, promise);
        assert!(!report.passed(), "{fault}: {reason}");
        eprintln!("{fault}: {reason}");
    }
}

fn entries(harness: &Harness) -> usize {
    let entries = harness.root().join("vms/blackboard/entries");
    entries.read_dir().map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advertiser_that_keeps_its_promises_passes_and_leaves_no_entry() {
    let harness = harness("blackboard", json!({ "step-ms": 5 }));
    let report = run(&harness).await;
    assert!(report.passed(), "{:?}", report.counts());
    assert_eq!(report.kind, Kind::DiscoveryAdvertiser);
    assert!(report.outcomes.len() > 25, "only {} checks", report.outcomes.len());
    assert_eq!(entries(&harness), 0);
}

/// Each of these is an advertiser that keeps all promises but one.
#[tokio::test(flavor = "multi_thread")]
async fn each_promise_that_an_advertiser_does_not_keep_is_noticed() {
    for (fault, call, promise) in [
        ("no-interval", "get-schedule", "a second at least"),
        ("expires-too-soon", "publish", "beyond the next interval"),
        ("takes-anything", "look-up", "no address"),
        ("takes-anything", "publish", "no address"),
        ("takes-anything", "publish", "price"),
        ("second-entry", "publish", "no second entry"),
        ("leaves-halves", "publish", "cut off in the middle"),
        ("never-updates", "publish", "a change is"),
        ("forgets", "look-up", "exactly what was published"),
        ("lies", "look-up", "exactly what was published"),
        ("finds-too-much", "search", "does not"),
        ("finds-nothing", "search", "finds it"),
        ("withdraws-nothing", "withdraw", "the entry is gone"),
        ("traps", "publish", "the first time"),
        ("hangs", "publish", "the first time"),
    ] {
        // On a fast machine a publication would be whole before it is cut off.
        let step_ms = if fault == "leaves-halves" { 150 } else { 0 };
        let settings = json!({ "fault": fault, "step-ms": step_ms, "minimum-gap-ms": 0 });
        let mut harness = harness("blackboard", settings);
        if fault == "hangs" {
            harness = harness.within(Duration::from_millis(500));
        }
        let report = run(&harness).await;
        let reason = failure(&report, call, promise);
        assert!(!report.passed(), "{fault}: {reason}");
        if fault != "withdraws-nothing" {
            assert_eq!(entries(&harness), 0, "{fault} has left an entry");
        }
        eprintln!("{fault}: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advertiser_without_its_place_is_checked_as_far_as_that_goes() {
    let report = run(&harness("blackboard", json!({ "fault": "unavailable" }))).await;
    let (passed, failed, not_applicable) = report.counts();
    assert!(!report.passed() && failed == 0, "{:?}", report.counts());
    assert!(passed > 8 && not_applicable > 10, "{:?}", report.counts());
    let first = report.outcomes.iter().find_map(|outcome| match &outcome.verdict {
        Verdict::NotApplicable(reason) => Some(reason.as_str()),
        _ => None,
    });
    assert!(first.is_some_and(|reason| reason.contains("taken away")), "{first:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advertiser_whose_run_is_broken_off_withdraws_its_entry() {
    let harness = harness("blackboard", json!({}));
    let broken_off = CancellationToken::new();
    let when_listed = broken_off.clone();
    let observer: Observer = Arc::new(move |event| {
        if let Event::Begins(check) = event
            && check.call == "search"
        {
            when_listed.cancel();
        }
    });
    let report = run_advertiser(&harness, observer, &broken_off).await;
    assert!(report.interrupted && !report.passed());
    assert_eq!(entries(&harness), 0);
}

/// A chain on which nothing happens. Its contract knows all calls but one, and has told of one payout.
struct Still;

#[async_trait::async_trait]
impl Ethereum for Still {
    fn address(&self) -> String {
        "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC".to_owned()
    }

    async fn sign_message(&self, _: &[u8]) -> Result<[u8; 65], Failure> {
        Err(Failure::new(FailureKind::Internal, "nothing is signed"))
    }

    async fn request(&self, _: &str, method: &str, params: &str) -> Result<String, ChainFailure> {
        let refusal = |message: &str| {
            ChainFailure::Rpc(RpcRefusal { code: 3, message: message.to_owned(), data: None })
        };
        match method {
            "eth_call" if params.contains("0xffffffff") => Err(refusal("no such function")),
            "eth_call" => Ok(format!("\"0x{}\"", "0".repeat(9 * 64))),
            "eth_getLogs" => {
                let topics = json!([format!("0x{}", "aa".repeat(32))]);
                Ok(json!([{ "topics": topics, "data": "0x" }]).to_string())
            }
            other => Err(refusal(other)),
        }
    }

    async fn request_all(
        &self,
        chain: &str,
        requests: &[(String, String)],
    ) -> Result<Vec<Result<String, RpcRefusal>>, Failure> {
        let mut answers = Vec::new();
        for (method, params) in requests {
            answers.push(match self.request(chain, method, params).await {
                Ok(answer) => Ok(answer),
                Err(ChainFailure::Rpc(refusal)) => Err(refusal),
                Err(ChainFailure::Provider(failure)) => return Err(failure),
            });
        }
        Ok(answers)
    }

    async fn send_transaction(
        &self,
        _: &str,
        _: Transaction,
        _: Duration,
    ) -> Result<Receipt, ChainFailure> {
        Err(ChainFailure::Provider(Failure::new(FailureKind::Internal, "nothing is sent")))
    }
}

fn tollbooth(settings: serde_json::Value) -> Harness {
    harness("tollbooth", settings).ethereum(Arc::new(Still))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_verifier_that_keeps_its_promises_passes() {
    let report = run(&tollbooth(json!({}))).await;
    assert!(report.passed(), "{:?}", report.counts());
    assert!(report.outcomes.len() > 30, "only {} checks", report.outcomes.len());
}

/// Each of these is a payment verifier that keeps all promises but one.
#[tokio::test(flavor = "multi_thread")]
async fn each_promise_of_a_payment_verifier_that_is_not_kept_is_noticed() {
    for (fault, call, promise) in [
        ("changes-terms", "get-terms", "always the same"),
        ("terms-from-nodes", "get-terms", "as ever"),
        ("takes-any-reference", "check-reference", "can name no payment"),
        ("respells", "check-reference", "its own spelling"),
        ("same-call", "collect", "another for each"),
        ("no-gas", "collect", "honest limit"),
        ("same-close", "close", "the same, or"),
        ("collects-anything", "collect", "can name no payment"),
        ("collects-elsewhere", "collect", "the contract takes it"),
        ("invents-payouts", "payouts", "mean nothing"),
        ("believes-anybody", "payouts", "other contracts"),
        ("no-time", "read", "of no payments"),
        ("ignores-confirmations", "read", "confirmations"),
        ("names-twice", "changed-since", "names payments once"),
        ("names-otherwise", "changed-since", "names payments once"),
        ("stands-still", "changed-since", "names payments once"),
        ("invents", "read", "never was"),
        ("forgets", "read", "that the chain tells of"),
        ("one-by-one", "read", "not one by one"),
        ("reads-anything", "read", "can name no payment"),
        ("sorts", "read", "in the order"),
        ("flickers", "read", "side by side"),
        ("overdrawn", "read", "more than was paid in"),
        ("sends", "plugin", "sends no transaction"),
        ("absent-when-down", "read", "no node answers"),
        ("trusts-nonsense", "read", "talk nonsense"),
        ("trusts-any-contract", "read", "another one"),
        ("traps", "read", "of no payments"),
    ] {
        let report = run(&tollbooth(json!({ "fault": fault }))).await;
        let reason = failure(&report, call, promise);
        assert!(!report.passed(), "{fault}: {reason}");
        eprintln!("{fault}: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_verifier_without_a_chain_is_checked_as_far_as_that_goes() {
    let contract = "0x5FbDB2315678afecb367f032d93F642f64180aa3";
    let report = run(&harness("stream-payment", json!({ "contract": contract }))).await;
    let (passed, failed, not_applicable) = report.counts();
    assert!(!report.passed() && failed == 0, "{:?}", report.counts());
    assert!(passed > 8 && not_applicable > 10, "{:?}", report.counts());
    let unset = run(&harness("stream-payment", json!({}))).await;
    assert!(!unset.blocked && unset.counts().1 == 0, "{:?}", unset.counts());
    assert!(unset.findings[0].message.contains("STREAM_PAYMENT_ADDRESS"));
}
