//! How many instructions the two hottest paths take: a call of a plugin, and the read of a VM. A noisy machine changes times,
//! but hardly these, so they guard against regressions that nobody would notice otherwise.
//!
//! Each test starts itself under valgrind twice, once for few operations and once for many; the difference is what one
//! operation takes. Both the provider's own code, which `cargo test` does not optimise, and that of its dependencies, which
//! it does, are counted: more than a release takes, but it grows with it, and nothing has to be compiled for it. Valgrind
//! has too little address space for the pool of instances, so the engine makes each one by itself: what is counted is a
//! call with everything but the pool's own bookkeeping, for which `cargo xtask bench plugin` is the measure.
//!
//! The limits leave about an eighth for other compilers. After a change that is meant to cost more, or less, take over the
//! number that the test prints (with `-- --nocapture`).

// Helpers of tests are no tests themselves to the linter.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Mutex,
};

use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use golem_provider::api::Answer;
use golem_provider_benches::{
    plugin,
    provider::{Provider, VM_PATH, VM_REQUEST},
};

/// A call of a plugin with a record of 200 bytes in and out, in a fresh instance. Counted: 199,000.
const PLUGIN_CALL_LIMIT: u64 = 224_000;
/// `GET /vms/{id}` from its head to the last byte of the body, without the connection. Counted: 45,900.
const READ_LIMIT: u64 = 52_000;

/// Who asks.
const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4711);

const FEW: u64 = 50;
const MANY: u64 = 550;

/// Set in a test that is being counted: how many operations, and where the plugin's compiled code is kept.
const OPERATIONS: &str = "GOLEM_COUNTED_OPERATIONS";
const DIRECTORY: &str = "GOLEM_COUNTED_DIRECTORY";

#[test]
fn a_plugin_call_takes_no_more_instructions_than_it_did() {
    check(
        "a_plugin_call_takes_no_more_instructions_than_it_did",
        PLUGIN_CALL_LIMIT,
        |count| async move {
            let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
            let loaded = plugin::load(Some(directory)).await.unwrap();
            let record = plugin::record();
            for _ in 0..count {
                assert_eq!(loaded.backend.inspect(&record).await.unwrap().id, record);
            }
        },
    );
}

#[test]
fn reading_a_vm_takes_no_more_instructions_than_it_did() {
    check("reading_a_vm_takes_no_more_instructions_than_it_did", READ_LIMIT, |count| async move {
        let provider = Provider::start().await.unwrap();
        let request = Request::post("/api/v1/vms").body(Body::from(VM_REQUEST)).unwrap();
        let made = provider.api.answer(CLIENT, request).await;
        assert_eq!(made.status(), 201);
        for _ in 0..count {
            let request = Request::get(VM_PATH)
                .header("host", "127.0.0.1")
                .header("accept", "*/*")
                .body(Body::empty())
                .unwrap();
            let answer = provider.api.answer(CLIENT, request).await;
            assert_eq!(answer.status(), 200);
            let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            assert!(body.starts_with(b"{"));
        }
    });
}

/// Counts what `work` does for one operation, or does it where it is being counted.
fn check<F: Future<Output = ()>>(test: &str, limit: u64, work: impl FnOnce(u64) -> F) {
    if let Some(count) = std::env::var_os(OPERATIONS) {
        let count = count.into_string().unwrap().parse().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work(count));
        return;
    }
    if !valgrind_is_there() {
        assert!(
            std::env::var_os("CI").is_none(),
            "valgrind is missing, and without it nothing is counted: install the package valgrind"
        );
        eprintln!("NOT COUNTED: valgrind is missing (the package valgrind)");
        return;
    }
    // One after the other: each is as large as the machine's memory allows.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    let directory = tempfile::tempdir().unwrap();
    let counted = |operations| instructions(test, operations, directory.path());
    // Leaves the compiled plugin behind, so that compiling is not counted.
    counted(1);
    let one = (counted(MANY) - counted(FEW)) / (MANY - FEW);
    println!("{test}: {one} instructions, the limit is {limit}");
    assert!(
        one <= limit,
        "one operation takes {one} instructions; {limit} are allowed (see {})",
        file!()
    );
}

fn valgrind_is_there() -> bool {
    let mut version = Command::new("valgrind");
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// All instructions of this test with so many operations.
fn instructions(test: &str, operations: u64, directory: &std::path::Path) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--test-threads=1"])
        .env(OPERATIONS, operations.to_string())
        .env(DIRECTORY, directory)
        .output()
        .expect("starting valgrind");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stdout));
    // `==4711== I   refs:      1,234,567`; without a simulated cache no other line speaks of refs.
    let count = told.lines().find_map(|line| line.split_once(" refs:"));
    let count = count.map(|(_, count)| count.trim().replace(',', "").parse());
    count.and_then(Result::ok).unwrap_or_else(|| panic!("valgrind counted nothing: {told}"))
}
