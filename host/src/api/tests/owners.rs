//! Signed requests: who is let in, and what belongs to whom.

use alloy::signers::local::PrivateKeySigner;
use jiff::Timestamp;

use super::*;
use crate::owners::{Address, Asked, Credentials, Nonce};

const PROVIDER: Address = alloy::primitives::address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266");

fn key(number: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_slice(&[number; 32]).unwrap()
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap()
}

fn signed_at(
    signer: &PrivateKeySigner,
    method: &Method,
    path: &str,
    body: &str,
    timestamp: u64,
) -> String {
    let asked = Asked::new(method.as_str(), path, body.as_bytes());
    Credentials::sign(signer, PROVIDER, asked, timestamp, Nonce::random()).unwrap().to_string()
}

async fn provider(more: &[(&str, &str)]) -> Provider {
    let fixture = Fixture::default();
    let node = fixture.start().await;
    let gatekeeper = Gatekeeper::open(PROVIDER, node.store.clone()).await.unwrap();
    Provider::with(fixture, node, more, Some(gatekeeper))
}

impl Provider {
    async fn with_lines(&self, method: Method, path: &str, body: &str, lines: &[&str]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for line in lines {
            request = request.header("authorization", *line);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let (parts, body) = self.api.answer(CLIENT, request).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("not JSON: {bytes:?}"));
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// As `signer`, or as nobody.
    async fn by(&self, signer: Option<u8>, method: Method, path: &str, body: Value) -> Answer {
        let path = format!("/api/v1{path}");
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let line = signer.map(|number| signed_at(&key(number), &method, &path, &body, now()));
        let lines: Vec<&str> = line.iter().map(String::as_str).collect();
        self.with_lines(method, &path, &body, &lines).await
    }
}

/// Refused as somebody who has not proven who they are.
fn unauthorized(answer: &Answer, code: &str) -> String {
    assert_eq!(answer.headers["www-authenticate"], "Golem");
    refused(answer, StatusCode::UNAUTHORIZED, code)
}

#[tokio::test]
async fn what_a_signed_request_made_is_its_owners_alone() {
    let provider = provider(&[]).await;
    let made = provider.by(Some(1), Method::POST, "/vms?async=true", json!({"name": "mine"})).await;
    assert_eq!(made.status, StatusCode::ACCEPTED, "{}", made.body);
    let job = format!("/vms/jobs/{}", made.body["job_id"].as_str().unwrap());
    let running = async {
        loop {
            let vm = provider.by(Some(1), Method::GET, "/vms/mine", Value::Null).await.body;
            if vm["status"] == "running" {
                return vm;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let vm = tokio::time::timeout(PATIENCE, running).await.unwrap();
    assert_eq!(vm["owner"], key(1).address().to_checksum(None));
    assert_eq!(vm["needs_signature"], true);
    let id = vm["id"].as_str().unwrap();

    let requests = [
        (Method::GET, "/vms/mine".to_owned()),
        (Method::GET, format!("/vms/{id}")),
        (Method::GET, "/vms/mine/access".to_owned()),
        (Method::GET, job),
        (Method::POST, "/vms/mine/stop".to_owned()),
        (Method::POST, "/vms/mine/start".to_owned()),
        (Method::POST, "/vms/mine/ssh-keys".to_owned()),
        (Method::DELETE, "/vms/mine".to_owned()),
    ];
    for (method, path) in &requests {
        let body = json!({ "key": KEY });
        let unsigned = provider.by(None, method.clone(), path, body.clone()).await;
        let detail = unauthorized(&unsigned, "signature_required");
        assert!(detail.contains("sign-request"), "{detail}");
        let stranger = provider.by(Some(2), method.clone(), path, body.clone()).await;
        refused(&stranger, StatusCode::FORBIDDEN, "not_the_owner");
        for refusal in [&unsigned, &stranger] {
            assert!(!refusal.body.to_string().contains(&vm["owner"].as_str().unwrap()[2..]));
        }
    }
    for signer in [None, Some(2)] {
        assert_eq!(provider.by(signer, Method::GET, "/vms", Value::Null).await.body, json!([]));
        let summary = provider.by(signer, Method::GET, "/summary", Value::Null).await.body;
        assert_eq!((&summary["vms"], &summary["vms_total"]), (&json!([]), &json!(1)));
        assert_eq!(summary["resources"]["allocated"]["cpu"], 1);
        let taken = provider.by(signer, Method::POST, "/vms", json!({"name": "mine"})).await;
        refused(&taken, StatusCode::CONFLICT, "name_in_use");
    }
    assert_eq!(provider.by(Some(1), Method::GET, "/vms", Value::Null).await.body, json!([vm]));
    let summary = provider.by(Some(1), Method::GET, "/summary", Value::Null).await.body;
    assert_eq!(summary["vms"], json!([vm]));
    for (method, path) in &requests {
        let answer = provider.by(Some(1), method.clone(), path, json!({ "key": KEY })).await;
        assert_eq!(answer.status, StatusCode::OK, "{method} {path}: {}", answer.body);
    }
    assert!(provider.fixture.backend.machines().is_empty());
}

#[tokio::test]
async fn what_an_unsigned_request_made_is_everybodys_as_ever() {
    let provider = provider(&[]).await;
    let vm = provider.make("open").await;
    assert_eq!((&vm["owner"], &vm["needs_signature"]), (&Value::Null, &json!(false)));
    for signer in [None, Some(1)] {
        let list = provider.by(signer, Method::GET, "/vms", Value::Null).await.body;
        assert_eq!(list[0]["id"], vm["id"]);
        let stopped = provider.by(signer, Method::POST, "/vms/open/stop", Value::Null).await;
        assert_eq!(stopped.body["status"], "stopped");
    }
    assert_eq!(provider.delete("/vms/open").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_signature_that_does_not_count_is_refused_whatever_is_asked() {
    let provider = provider(&[]).await;
    let (get, path) = (Method::GET, "/api/v1/vms");
    let good = signed_at(&key(1), &get, path, "", now());
    let other_path = signed_at(&key(1), &get, "/api/v1/vms?", "", now());
    let other_body = signed_at(&key(1), &get, path, " ", now());
    let other_method = signed_at(&key(1), &Method::POST, path, "", now());
    let anothers =
        good.replace(&key(1).address().to_checksum(None), &key(2).address().to_checksum(None));
    let nonce = Nonce::random();
    let elsewhere =
        Credentials::sign(&key(1), Address::ZERO, Asked::new("GET", path, b""), now(), nonce);
    let elsewhere = elsewhere.unwrap().to_string();
    for line in [&other_path, &other_body, &other_method, &anothers, &elsewhere] {
        let refused = provider.with_lines(Method::GET, path, "", &[line]).await;
        unauthorized(&refused, "signature_invalid");
    }
    for offset in [-62_i64, 65] {
        let line = signed_at(&key(1), &get, path, "", now().saturating_add_signed(offset));
        let refused = provider.with_lines(Method::GET, path, "", &[&line]).await;
        let detail = unauthorized(&refused, "signature_expired");
        assert!(detail.contains("clock"), "{detail}");
    }
    for lines in [&["Golem"][..], &["Golem x:y"], &[&good, &good], &["Bearer x", &good]] {
        let refused = provider.with_lines(Method::GET, path, "", lines).await;
        unauthorized(&refused, "signature_malformed");
    }
    // None of that has used it up.
    let once = provider.with_lines(Method::GET, path, "", &[&good]).await;
    assert_eq!(once.status, StatusCode::OK);
    let twice = provider.with_lines(Method::GET, path, "", &[&good]).await;
    unauthorized(&twice, "signature_replayed");

    let bearer = provider.with_lines(Method::GET, path, "", &["Bearer x"]).await;
    assert_eq!(bearer.status, StatusCode::OK);
    let health = provider.with_lines(Method::GET, "/health", "", &["Golem x"]).await;
    assert_eq!(health.status, StatusCode::OK);
}

#[tokio::test]
async fn a_signed_body_that_is_too_long_is_refused_unread() {
    let provider = provider(&[]).await;
    let body = "x".repeat(64 * 1024 + 1);
    let line = signed_at(&key(1), &Method::POST, "/api/v1/vms", &body, now());
    let answer = provider.with_lines(Method::POST, "/api/v1/vms", &body, &[&line]).await;
    refused(&answer, StatusCode::PAYLOAD_TOO_LARGE, "body_too_large");
}

#[tokio::test]
async fn where_signatures_are_required_nothing_is_made_without_one() {
    let provider = provider(&[("GOLEM_PROVIDER_REQUIRE_SIGNED_REQUESTS", "true")]).await;
    let unsigned = provider.post("/vms", json!({"name": "open"})).await;
    let detail = unauthorized(&unsigned, "signature_required");
    assert!(detail.contains("golem-provider sign-request"), "{detail}");
    assert_eq!(provider.get("/vms").await.status, StatusCode::OK);
    let signed = provider.by(Some(1), Method::POST, "/vms", json!({"name": "mine"})).await;
    assert_eq!(signed.status, StatusCode::CREATED, "{}", signed.body);
    assert_eq!(signed.body["needs_signature"], true);
}

#[tokio::test]
async fn many_at_once_with_one_signature_are_one_that_counts() {
    let provider = provider(&[]).await;
    let body = json!({"name": "mine"}).to_string();
    let line = signed_at(&key(1), &Method::POST, "/api/v1/vms", &body, now());
    let asked = (0..8).map(|_| {
        let lines = [line.as_str()];
        let (provider, body) = (&provider, body.as_str());
        async move { provider.with_lines(Method::POST, "/api/v1/vms", body, &lines).await.status }
    });
    let mut statuses = futures_util::future::join_all(asked).await;
    statuses.sort();
    assert_eq!(statuses[0], StatusCode::CREATED);
    assert!(statuses[1..].iter().all(|status| *status == StatusCode::UNAUTHORIZED));
}

#[tokio::test]
async fn a_page_of_another_origin_may_sign() {
    let provider = provider(&[]).await;
    let request = Request::builder()
        .method(Method::OPTIONS)
        .uri("/api/v1/vms")
        .header("origin", "https://a.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    let response = provider.api.answer(CLIENT, request.body(Body::empty()).unwrap()).await;
    let allowed = response.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(allowed.contains("authorization"), "{allowed}");
}
