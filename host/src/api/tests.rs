//! The API over a real VM service, whose machines are in memory: what clients send and expect.

mod conformance;
mod owners;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{Answer as _, *};
use crate::{
    payments::pricing::Rate,
    plugins::FailureKind,
    settings::{self, Inputs, Overrides},
    telemetry::testing::Lines,
    vms::{
        Backends,
        testing::{Call, Fault, Fixture, Node},
    },
};

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 50_000);

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio alice";

/// Long enough for anything that is going to happen at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// A provider with machines in memory, and its API.
struct Provider {
    fixture: Fixture,
    node: Node,
    api: Api,
}

/// A minute old.
fn rate() -> Option<Rate> {
    Some(Rate {
        usd_per_glm: "0.3".parse().unwrap(),
        at: jiff::Timestamp::now() - jiff::SignedDuration::from_secs(60),
        source: "https://prices.example".into(),
    })
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Provider {
    async fn start() -> Self {
        let fixture = Fixture::default();
        let node = fixture.start().await;
        Self::of(fixture, node)
    }

    fn of(fixture: Fixture, node: Node) -> Self {
        Self::with(fixture, node, &[], None)
    }

    fn with(
        fixture: Fixture,
        node: Node,
        more: &[(&str, &str)],
        gatekeeper: Option<Gatekeeper>,
    ) -> Self {
        let environment = [
            ("GOLEM_PROVIDER_RATE_LIMIT_PER_MINUTE", "0"),
            ("GOLEM_PROVIDER_PUBLIC_IP", "203.0.113.5"),
            ("GOLEM_PROVIDER_COUNTRY", "se"),
        ];
        let inputs = Inputs {
            environment: environment
                .iter()
                .chain(more)
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            working_dir: None,
            home_dir: Some("/home/of/nobody".into()),
        };
        let settings = settings::resolve(&inputs, &Overrides::default()).unwrap();
        let state = ApiState::new(
            &settings,
            "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266".into(),
            node.service.clone(),
            watch::Sender::new(Prices::new(settings.pricing.usd, rate())).subscribe(),
        );
        let api = Api::new(match gatekeeper {
            Some(gatekeeper) => state.with_gatekeeper(gatekeeper),
            None => state,
        });
        Self { fixture, node, api }
    }

    async fn ask_with(&self, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let response = self.api.answer(CLIENT, request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("not JSON: {bytes:?}"));
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask_with(Method::GET, &format!("/api/v1{path}"), Body::empty()).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask_with(Method::POST, &format!("/api/v1{path}"), body).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.ask_with(Method::DELETE, &format!("/api/v1{path}"), Body::empty()).await
    }

    /// Makes a VM and waits until it runs.
    async fn make(&self, name: &str) -> Value {
        let answer = self.post("/vms", json!({"name": name})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        answer.body
    }

    /// Polls as clients do.
    async fn until(&self, path: &str, field: &str, value: &str) -> Value {
        let poll = async {
            loop {
                let answer = self.get(path).await;
                if answer.body[field] == value {
                    return answer.body;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, poll)
            .await
            .unwrap_or_else(|_| panic!("{path} never became {value}"))
    }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Refused, in the form that every refusal has.
fn refused(answer: &Answer, status: StatusCode, code: &str) -> String {
    assert_eq!(
        (answer.status, answer.body["code"].as_str()),
        (status, Some(code)),
        "{}",
        answer.body
    );
    assert_eq!(
        answer.body["request_id"].as_str().unwrap(),
        answer.headers["x-request-id"].to_str().unwrap()
    );
    assert_eq!(keys(&answer.body).len(), 3);
    match answer.body["detail"].as_str() {
        Some(detail) => detail.to_owned(),
        None => answer.body["detail"].to_string(),
    }
}

#[tokio::test]
async fn the_published_request_makes_the_published_answer() {
    let provider = Provider::start().await;
    let body = json!({"name": "my-webserver", "cpu_cores": 2, "memory_gb": 4, "storage_gb": 20, "stream_id": 123});
    let answer = provider.post("/vms", body).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(answer.headers["location"], "/api/v1/vms/my-webserver");
    let vm = answer.body;
    assert!(vm["id"].as_str().unwrap().starts_with("golem-my-webserver-"), "{vm}");
    assert_eq!(
        (vm["name"].as_str(), vm["status"].as_str()),
        (Some("my-webserver"), Some("running"))
    );
    assert_eq!(vm["resources"], json!({"cpu": 2, "memory": 4, "storage": 20}));
    assert!(
        provider.fixture.ports.contains(&u16::try_from(vm["ssh_port"].as_u64().unwrap()).unwrap())
    );
    assert_eq!(vm["error_message"], Value::Null);
    for name in ["created_at", "updated_at"] {
        vm[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }
    let expected = [
        "id",
        "name",
        "status",
        "ip_address",
        "ssh_port",
        "resources",
        "created_at",
        "updated_at",
        "error_message",
        "phase",
        "image",
        "backend",
        "progress",
        "owner",
        "needs_signature",
    ];
    assert_eq!(keys(&vm), BTreeSet::from(expected));
    for id in ["my-webserver", vm["id"].as_str().unwrap()] {
        assert_eq!(provider.get(&format!("/vms/{id}")).await.body, vm);
    }
    assert_eq!(provider.get("/vms").await.body, json!([vm]));
}

#[tokio::test]
async fn a_client_that_asks_at_once_follows_the_vm_until_it_can_log_in() {
    let provider = Provider::start().await;
    provider.fixture.backend.set_boot_time(Duration::from_millis(200));
    let body =
        json!({"name": "abc", "resources": {"cpu": 1, "memory": 1, "storage": 10}, "ssh_key": KEY});
    let answer = provider.post("/vms?async=true", body).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(
        (answer.body["vm_id"].as_str(), answer.body["status"].as_str()),
        (Some("abc"), Some("creating"))
    );
    let job = format!("/vms/jobs/{}", answer.body["job_id"].as_str().unwrap());

    let vm = provider.get("/vms/abc").await.body;
    assert_eq!(
        (vm["status"].as_str(), &vm["ip_address"], &vm["ssh_port"]),
        (Some("creating"), &Value::Null, &Value::Null)
    );
    let access = provider.get("/vms/abc/access").await;
    assert_eq!(access.status, StatusCode::ACCEPTED);
    assert_eq!(
        (access.body["status"].as_str(), &access.body["ssh_port"]),
        (Some("creating"), &Value::Null)
    );
    assert_eq!(provider.get(&job).await.body["status"], "creating");

    let vm = provider.until("/vms/abc", "status", "running").await;
    let access = provider.get("/vms/abc/access").await;
    assert_eq!(access.status, StatusCode::OK);
    assert_eq!(
        (&access.body["ssh_port"], &access.body["multipass_name"]),
        (&vm["ssh_port"], &vm["id"])
    );
    assert_eq!(
        (access.body["vm_id"].as_str(), access.body["ssh_host"].as_str()),
        (Some("abc"), Some("203.0.113.5"))
    );
    let job = provider.until(&job, "status", "ready").await;
    assert_eq!((job["vm_id"].as_str(), &job["error"]), (Some("abc"), &Value::Null));
    assert_eq!(
        keys(&job),
        BTreeSet::from(["job_id", "vm_id", "status", "error", "created_at", "updated_at"])
    );
}

#[tokio::test]
async fn async_is_understood_as_clients_write_it() {
    let provider = Provider::start().await;
    for (index, value) in ["true", "1", "True"].iter().enumerate() {
        let answer = provider
            .post(&format!("/vms?async={value}"), json!({"name": format!("vm-{index}")}))
            .await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{value}");
    }
    assert_eq!(
        provider.post("/vms?async=false", json!({"name": "abc"})).await.status,
        StatusCode::CREATED
    );
    let answer = provider.post("/vms?async=perhaps", json!({"name": "xyz"})).await;
    assert!(
        refused(&answer, StatusCode::UNPROCESSABLE_ENTITY, "validation_failed").contains("query")
    );
    assert_eq!(provider.get("/vms/xyz").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_vm_is_stopped_started_given_a_key_and_deleted() {
    let provider = Provider::start().await;
    let vm = provider.make("abc").await;
    for _ in 0..2 {
        let answer = provider.post("/vms/abc/stop", Value::Null).await;
        assert_eq!(
            (answer.status, answer.body["status"].as_str()),
            (StatusCode::OK, Some("stopped"))
        );
        assert_eq!(answer.body["ssh_port"], vm["ssh_port"]);
    }
    let answer = provider.post("/vms/abc/ssh-keys", json!({"key": KEY})).await;
    refused(&answer, StatusCode::CONFLICT, "wrong_state");
    for _ in 0..2 {
        let answer = provider.post("/vms/abc/start", json!({})).await;
        assert_eq!(
            (answer.status, answer.body["status"].as_str()),
            (StatusCode::OK, Some("running"))
        );
    }
    let answer =
        provider.post("/vms/abc/ssh-keys", json!({"public_key": KEY, "name": "laptop"})).await;
    assert_eq!(
        (answer.status, answer.body),
        (StatusCode::OK, json!({"vm_id": "abc", "status": "added"}))
    );
    assert_eq!(provider.fixture.backend.machines().values().next().unwrap().keys, [KEY]);

    let answer = provider.delete("/vms/abc").await;
    assert_eq!((answer.status, answer.body), (StatusCode::OK, Value::Null));
    assert!(provider.fixture.backend.machines().is_empty());
    let answer = provider.delete("/vms/abc").await;
    assert!(refused(&answer, StatusCode::NOT_FOUND, "vm_not_found").contains("Not Found"));
}

#[tokio::test]
async fn what_is_unknown_is_404_in_words_that_clients_look_for() {
    let provider = Provider::start().await;
    for path in [
        "/vms/abc",
        "/vms/abc/access",
        "/vms/%ff",
        "/vms/jobs/nonsense",
        "/vms/jobs/5f6c2b0e-8f6e-4d4e-9f53-000000000000",
        "/nowhere",
    ] {
        let answer = provider.get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert!(answer.body["detail"].as_str().unwrap().contains("Not Found"), "{path}");
    }
    for path in ["/vms/abc/stop", "/vms/abc/start", "/vms/abc/ssh-keys"] {
        refused(
            &provider.post(path, json!({"key": KEY})).await,
            StatusCode::NOT_FOUND,
            "vm_not_found",
        );
    }
}

#[tokio::test]
async fn a_vm_called_jobs_is_a_vm_like_any_other() {
    let provider = Provider::start().await;
    let vm = provider.make("jobs").await;
    assert_eq!(provider.get("/vms/jobs").await.body, vm);
    assert_eq!(provider.get("/vms/jobs/access").await.body["vm_id"], "jobs");
    assert_eq!(
        provider.post("/vms/jobs/ssh-keys", json!({"key": KEY})).await.status,
        StatusCode::OK
    );
    assert_eq!(provider.post("/vms/jobs/stop", Value::Null).await.body["status"], "stopped");
    assert_eq!(provider.post("/vms/jobs/start", Value::Null).await.body["status"], "running");
    refused(&provider.get("/vms/jobs/stream").await, StatusCode::BAD_REQUEST, "payments_off");
    assert_eq!(provider.delete("/vms/jobs").await.status, StatusCode::OK);
    assert_eq!(provider.get("/vms/jobs").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_cannot_be_made_is_refused_by_the_request_itself() {
    let mut fixture = Fixture::default();
    fixture.config.max_vms = 2;
    let node = fixture.start().await;
    let provider = Provider::of(fixture, node);
    provider.make("abc").await;
    for path in ["/vms", "/vms?async=true"] {
        let refuse = async |body: Value, status: StatusCode, code: &str| {
            refused(&provider.post(path, body).await, status, code)
        };
        refuse(json!({"name": "abc"}), StatusCode::CONFLICT, "name_in_use").await;
        let detail = refuse(
            json!({"name": "xyz", "image": "--mount=/etc:/mnt"}),
            StatusCode::BAD_REQUEST,
            "unknown_image",
        )
        .await;
        assert!(detail.contains("24.04"), "{detail}");
        let huge = json!({"name": "xyz", "cpu_cores": 1, "memory_gb": 1, "storage_gb": 60_000});
        let detail = refuse(huge, StatusCode::CONFLICT, "insufficient_resources").await;
        assert!(detail.contains("storage"), "{detail}");
        let detail =
            refuse(json!({"name": "X"}), StatusCode::UNPROCESSABLE_ENTITY, "validation_failed")
                .await;
        assert!(detail.contains(r#"["body","name"]"#), "{detail}");
    }
    provider.make("def").await;
    refused(
        &provider.post("/vms", json!({"name": "xyz"})).await,
        StatusCode::CONFLICT,
        "too_many_vms",
    );
    assert_eq!(provider.get("/vms").await.body.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_backend_that_fails_is_told_apart_by_status() {
    let provider = Provider::start().await;
    provider.make("abc").await;
    for (kind, status, code) in [
        (FailureKind::Unavailable, StatusCode::SERVICE_UNAVAILABLE, "backend_unavailable"),
        (FailureKind::Internal, StatusCode::BAD_GATEWAY, "backend_failed"),
        (FailureKind::Unsupported, StatusCode::NOT_IMPLEMENTED, "backend_unsupported"),
    ] {
        provider.fixture.backend.next(Call::AddKey, Fault::Fail(kind));
        let answer = provider.post("/vms/abc/ssh-keys", json!({"key": KEY})).await;
        assert!(refused(&answer, status, code).contains("went wrong"));
    }
}

#[tokio::test]
async fn without_a_backend_reading_works_and_making_is_refused_with_the_reason() {
    let fixture = Fixture::default();
    let node = fixture.start_with(Backends::none("QEMU is not installed".into(), Vec::new())).await;
    let provider = Provider::of(fixture, node);
    let answer = provider.post("/vms", json!({"name": "abc"})).await;
    assert!(
        refused(&answer, StatusCode::SERVICE_UNAVAILABLE, "no_backend")
            .contains("QEMU is not installed")
    );
    assert_eq!(provider.get("/vms").await.body, json!([]));
}

#[tokio::test]
async fn a_create_that_fails_tells_why_in_the_answer_the_job_and_the_vm() {
    let provider = Provider::start().await;
    provider.fixture.backend.next(Call::Create, Fault::Fail(FailureKind::Internal));
    let answer = provider.post("/vms", json!({"name": "abc"})).await;
    assert!(refused(&answer, StatusCode::BAD_GATEWAY, "backend_failed").contains("went wrong"));

    provider.fixture.backend.next(Call::Create, Fault::Fail(FailureKind::Internal));
    let answer = provider.post("/vms?async=1", json!({"name": "def"})).await;
    let job = format!("/vms/jobs/{}", answer.body["job_id"].as_str().unwrap());
    assert!(
        provider.until(&job, "status", "failed").await["error"]
            .as_str()
            .unwrap()
            .contains("went wrong")
    );
    let vm = provider.until("/vms/def", "phase", "failed").await;
    assert_eq!(vm["status"], "error");
    assert!(vm["error_message"].as_str().unwrap().contains("went wrong"));
}

#[tokio::test]
async fn a_failed_vm_without_a_port_has_no_access() {
    let provider = Provider::start().await;
    provider.fixture.backend.next(Call::Create, Fault::Fail(FailureKind::Internal));
    provider.post("/vms", json!({"name": "abc"})).await;
    let path = "/vms/abc/access";
    let gone = async {
        while provider.get(path).await.status != StatusCode::CONFLICT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert!(
        refused(&provider.get(path).await, StatusCode::CONFLICT, "wrong_state")
            .contains("went wrong")
    );
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_the_work_going_on() {
    let provider = Provider::start().await;
    provider.fixture.backend.set_boot_time(Duration::from_millis(100));
    let request = provider.post("/vms", json!({"name": "abc"}));
    let given_up = tokio::time::timeout(Duration::from_millis(50), request).await;
    // On a slow machine the client may go before it was admitted; then there is no VM, or one that comes to run.
    if given_up.is_err() && provider.get("/vms/abc").await.status == StatusCode::OK {
        provider.until("/vms/abc", "status", "running").await;
    }
    provider.fixture.backend.set_boot_time(Duration::ZERO);
    provider.make("def").await;
    let request = provider.delete("/vms/def");
    drop(tokio::time::timeout(Duration::ZERO, request).await);
    let gone = async {
        while provider.get("/vms/def").await.status != StatusCode::NOT_FOUND {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn the_content_type_does_not_matter_and_a_long_body_is_refused() {
    let provider = Provider::start().await;
    for (name, kind) in [
        ("abc", "application/x-www-form-urlencoded"),
        ("def", "text/plain"),
        ("ghi", "application/json"),
    ] {
        let body = json!({"name": name}).to_string();
        let request = Request::post("/api/v1/vms")
            .header("content-type", kind)
            .body(Body::from(body))
            .unwrap();
        assert_eq!(provider.api.answer(CLIENT, request).await.status(), StatusCode::CREATED);
    }
    let filler = |length: usize| {
        let mut body = json!({"name": "xyz", "filler": ""}).to_string();
        let at = body.find("\"filler\":\"").unwrap() + "\"filler\":\"".len();
        body.insert_str(at, &"x".repeat(length - body.len()));
        body
    };
    let answer = provider.ask_with(Method::POST, "/api/v1/vms", filler(64 * 1024 + 1)).await;
    refused(&answer, StatusCode::PAYLOAD_TOO_LARGE, "body_too_large");
    let answer = provider.ask_with(Method::POST, "/api/v1/vms", filler(64 * 1024)).await;
    assert_eq!(answer.status, StatusCode::CREATED);
}

#[tokio::test]
async fn the_log_lines_of_a_request_carry_its_id_also_those_of_the_work_it_began() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(lines.writer()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let provider = Provider::start().await;
    // Other tests of this process pass the same places without a subscriber, and whoever comes first decides whether a place
    // is looked at later; so each is passed once, and then all are asked again.
    for (name, id) in [("abc", "first"), ("def", "mine-1")] {
        provider.fixture.backend.next(Call::Create, Fault::Fail(FailureKind::Internal));
        let request = Request::post("/api/v1/vms").header("x-request-id", id);
        let request = request.body(Body::from(json!({"name": name}).to_string())).unwrap();
        provider.api.answer(CLIENT, request).await;
        tracing::callsite::rebuild_interest_cache();
    }

    let text = lines.text();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let with_id: Vec<_> = lines.filter(|line| line["spans"][0]["request_id"] == "mine-1").collect();
    let says = |what: &str| {
        with_id
            .iter()
            .any(|line| line["fields"]["message"].as_str().is_some_and(|text| text.contains(what)))
    };
    assert!(says("answered") && says("has failed"), "{text}");
}

#[tokio::test]
async fn provider_info_is_what_clients_read() {
    let provider = Provider::start().await;
    let info = provider.get("/provider/info").await;
    assert_eq!(
        (info.status, info.headers["content-type"].to_str().unwrap()),
        (StatusCode::OK, "application/json")
    );
    let zero = "0x0000000000000000000000000000000000000000";
    let info = info.body;
    assert_eq!(info["provider_id"], "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
    assert_eq!(
        (info["stream_payment_address"].as_str(), info["glm_token_address"].as_str()),
        (Some(zero), Some(zero))
    );
    assert_eq!(
        (info["ip_address"].as_str(), info["country"].as_str()),
        (Some("203.0.113.5"), Some("SE"))
    );
    assert!(["x86_64", "arm64"].contains(&info["platform"].as_str().unwrap()));
}

#[tokio::test]
async fn the_summary_shows_machine_prices_and_vms() {
    let provider = Provider::start().await;
    let vm = provider.make("abc").await;
    let summary = provider.get("/summary").await.body;
    assert_eq!(
        (summary["status"].as_str(), summary["environment"].as_str()),
        (Some("running"), Some("production"))
    );
    assert_eq!(summary["vms"], json!([vm]));
    assert_eq!(summary["resources"]["total"], json!({"cpu": 64, "memory": 256, "storage": 4000}));
    assert_eq!(summary["resources"]["allocated"], json!({"cpu": 1, "memory": 1, "storage": 10}));
    let pricing = &summary["pricing"];
    assert_eq!(pricing["usd_per_core_month"], 5.0);
    assert_eq!(pricing["glm_per_core_month"], "16.666666666666666667");
    assert_eq!(pricing["usd_per_glm"], "0.3");
    assert!(pricing["rate_age_seconds"].as_u64().unwrap() >= 60, "{pricing}");
}

#[tokio::test]
async fn there_are_no_streams_while_no_payments_are_taken() {
    let provider = Provider::start().await;
    provider.make("abc").await;
    refused(&provider.get("/vms/abc/stream").await, StatusCode::BAD_REQUEST, "payments_off");
    assert_eq!(provider.get("/payments/streams").await.body, json!([]));
}

#[tokio::test]
async fn health_and_the_document_are_found_with_and_without_the_prefix() {
    let provider = Provider::start().await;
    for path in ["/health", "/api/v1/health"] {
        assert_eq!(provider.ask_with(Method::GET, path, Body::empty()).await.body["status"], "ok");
    }
    let (plain, prefixed) = (
        provider.ask_with(Method::GET, "/openapi.json", Body::empty()).await.body,
        provider.ask_with(Method::GET, "/api/v1/openapi.json", Body::empty()).await.body,
    );
    assert_eq!(plain, prefixed);
    assert!(plain["openapi"].as_str().unwrap().starts_with("3.1"));
}

#[tokio::test]
async fn every_operation_of_the_document_exists_and_every_reference_resolves() {
    let provider = Provider::start().await;
    provider.make("abc").await;
    let document = provider.ask_with(Method::GET, "/openapi.json", Body::empty()).await.body;
    let mut count = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let path = path
                .replace("{id}", "abc")
                .replace("{job_id}", "5f6c2b0e-8f6e-4d4e-9f53-000000000000");
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let answer = provider.ask_with(method.clone(), &path, Body::empty()).await;
            let status = answer.status.as_u16().to_string();
            assert!(
                operation["responses"].get(&status).is_some(),
                "{method} {path} answers {status}, which is not documented"
            );
            assert!(
                answer
                    .body
                    .get("code")
                    .is_none_or(|code| code != "not_found" && code != "method_not_allowed"),
                "{method} {path}"
            );
            count += 1;
            if method == Method::DELETE {
                provider.make("abc").await;
            }
        }
    }
    assert_eq!(count, 15);

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}
