//! Whatever is asked, the answer is one that the document describes: its status, its headers, its body.
//!
//! Requests are made at random, most of them from valid ones by a few changes; the backend fails at random too.

use std::collections::HashMap;

use axum::{body::Bytes, http::HeaderValue};
use jsonschema::Validator;
use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

/// The document, ready to be held against answers.
struct Document {
    /// Path templates, split into segments, with the methods there are.
    paths: Vec<(Vec<String>, Vec<String>)>,
    /// By path template, method and status.
    answers: HashMap<(String, String, u16), Described>,
    error: Described,
}

/// What the document says of an answer.
struct Described {
    required_headers: Vec<String>,
    body: Validator,
}

impl Document {
    fn of(document: &Value) -> Self {
        let mut paths = Vec::new();
        let mut answers = HashMap::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            let operations = operations.as_object().unwrap();
            paths.push((segments(path), operations.keys().cloned().collect()));
            for (method, operation) in operations {
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let key = (segments(path).join("/"), method.clone(), status.parse().unwrap());
                    answers.insert(key, Described::of(document, response));
                }
            }
        }
        let error = json!({
            "headers": {"X-Request-Id": {"required": true}},
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        });
        Self { paths, answers, error: Described::of(document, &error) }
    }

    /// What is wrong with an answer.
    fn check(&self, method: &Method, path: &str, answer: &RawAnswer) -> Result<(), String> {
        let path = path.split('?').next().unwrap();
        // These two are found at both places, and the document tells of one.
        let twofold = ["/health", "/openapi.json"];
        let plain = path.strip_prefix(PREFIX).filter(|plain| twofold.contains(plain));
        let asked = segments(plain.unwrap_or(path));
        let method_name = match *method {
            Method::HEAD => "get".to_owned(),
            _ => method.as_str().to_lowercase(),
        };
        // `/vms/jobs/stop` fits two templates, and is about the VM that is called `jobs`.
        let fitting = self.paths.iter().filter(|(template, _)| fits(template, &asked));
        let template = fitting.max_by_key(|(template, _)| template.last() == asked.last());
        let methods = template.map_or(&[][..], |(_, methods)| methods.as_slice());
        if let Some((template, _)) = template.filter(|_| methods.contains(&method_name)) {
            let key = (template.join("/"), method_name, answer.status.as_u16());
            let described = self.answers.get(&key);
            let undocumented = || format!("{} is not documented", answer.status);
            return described.ok_or_else(undocumented)?.check(method, answer);
        }
        match answer.status {
            StatusCode::NOT_FOUND
            | StatusCode::URI_TOO_LONG
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {}
            StatusCode::METHOD_NOT_ALLOWED if answer.headers.contains_key("allow") => {}
            StatusCode::UNAUTHORIZED if answer.headers.contains_key("www-authenticate") => {}
            status => return Err(format!("there is no such thing, and it answers {status}")),
        }
        self.error.check(method, answer)
    }
}

impl Described {
    fn of(document: &Value, response: &Value) -> Self {
        let response = resolved(document, response);
        let headers = response["headers"].as_object().unwrap();
        let required_headers = headers
            .iter()
            .filter(|(_, header)| resolved(document, header)["required"] == true)
            .map(|(name, _)| name.to_lowercase())
            .collect();
        let mut schema = response["content"]["application/json"]["schema"].clone();
        assert!(schema.is_object(), "an answer without a schema: {response}");
        schema["components"] = document["components"].clone();
        Self { required_headers, body: jsonschema::validator_for(&schema).unwrap() }
    }

    fn check(&self, method: &Method, answer: &RawAnswer) -> Result<(), String> {
        for name in &self.required_headers {
            if !answer.headers.contains_key(name) {
                return Err(format!("no {name}"));
            }
        }
        if method == Method::HEAD {
            return Ok(());
        }
        let kind = answer.headers.get("content-type").map(HeaderValue::as_bytes);
        if kind != Some(b"application/json") {
            return Err(format!("content type {kind:?}"));
        }
        let body = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        self.body.validate(&body).map_err(|error| format!("{error} in {body}"))
    }
}

struct RawAnswer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

fn segments(path: &str) -> Vec<String> {
    path.trim_start_matches('/').split('/').map(str::to_owned).collect()
}

fn fits(template: &[String], asked: &[String]) -> bool {
    template.len() == asked.len()
        && template.iter().zip(asked).all(|(template, asked)| {
            template == asked || (template.starts_with('{') && !asked.is_empty())
        })
}

/// Follows a reference.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => value,
    }
}

/// What one case does.
#[derive(Debug, Clone)]
struct Case {
    fault: Option<(Call, FailureKind)>,
    method: Method,
    path: String,
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
}

fn any_case() -> impl Strategy<Value = Case> {
    let methods = prop::sample::select(vec![
        Method::GET,
        Method::GET,
        Method::POST,
        Method::POST,
        Method::DELETE,
        Method::HEAD,
        Method::PUT,
        Method::PATCH,
        Method::OPTIONS,
        Method::TRACE,
    ]);
    let id = "(abc|def|new-[a-c]|jobs|golem-[a-z]{1,4}|[a-z0-9%.-]{1,12})";
    let job = "(5f6c2b0e-8f6e-4d4e-9f53-000000000000|[a-f0-9-]{1,36})";
    let paths = prop_oneof![
        4 => Just("/api/v1/vms".to_owned()),
        3 => id.prop_map(|id| format!("/api/v1/vms/{id}")),
        5 => (id, "(access|stop|start|ssh-keys|stream)").prop_map(|(id, what)| format!("/api/v1/vms/{id}/{what}")),
        1 => job.prop_map(|job| format!("/api/v1/vms/jobs/{job}")),
        2 => "(/api/v1)?/(health|openapi.json|summary|provider/info|payments/streams)",
        1 => "/[a-z0-9%/.]{0,24}",
    ];
    let queries = prop_oneof![
        2 => Just(String::new()),
        1 => "\\?async=(true|false|1|0|True|yes|perhaps|)",
        1 => "\\?[a-z=&%0-9+]{0,16}",
    ];
    let headers = prop::sample::select(vec![
        "x-request-id",
        "x-forwarded-for",
        "origin",
        "host",
        "content-type",
        "accept",
        "expect",
        "authorization",
        "if-none-match",
        "range",
        "connection",
    ]);
    let values = prop_oneof![
        "[ -~]{0,40}".prop_map(String::into_bytes),
        "(Golem|golem)( 0x[0-9a-f]{40}:0x[0-9a-f]{130};timestamp=[0-9]{10};nonce=[a-z]{8}|[ -~]{0,40})"
            .prop_map(String::into_bytes),
        prop::collection::vec(0x80_u8..=0xff, 0..8),
        Just(vec![b'a'; 20_000]),
    ];
    let kinds = prop::sample::select(vec![
        FailureKind::NotFound,
        FailureKind::AlreadyExists,
        FailureKind::InvalidArgument,
        FailureKind::FailedPrecondition,
        FailureKind::ResourceExhausted,
        FailureKind::Unavailable,
        FailureKind::DeadlineExceeded,
        FailureKind::PermissionDenied,
        FailureKind::Unsupported,
        FailureKind::Internal,
    ]);
    let calls = prop::sample::select(vec![
        Call::Images,
        Call::Create,
        Call::Start,
        Call::Stop,
        Call::Delete,
        Call::AddKey,
    ]);
    let anything = (
        prop::option::weighted(0.03, (calls, kinds)),
        methods,
        (paths, queries).prop_map(|(path, query)| path + &query),
        prop::collection::vec((headers, values), 0..4),
        any_body(),
    )
        .prop_map(|(fault, method, path, headers, body)| Case {
            fault,
            method,
            path,
            headers,
            body,
        });
    // So many things can be wrong with a request that most would be refused: some have nothing wrong with them.
    let create = ("[a-z]{3,4}", any::<bool>()).prop_map(|(name, at_once)| Case {
        fault: None,
        method: Method::POST,
        path: format!("/api/v1/vms?async={at_once}"),
        headers: Vec::new(),
        body: json!({"name": name}).to_string().into_bytes(),
    });
    prop_oneof![9 => anything, 1 => create]
}

/// Bodies that are valid, or were before a few changes, or never.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let valid = prop::sample::select(vec![
        json!({"name": "new-a"}),
        json!({"name": "new-b", "cpu_cores": 2, "memory_gb": 4, "storage_gb": 20, "stream_id": 123}),
        json!({"name": "new-c", "resources": {"cpu": 1, "memory": 1, "storage": 10}, "ssh_key": KEY}),
        json!({"name": "new-a", "size": "small", "image": "24.04"}),
        json!({"name": "laptop", "key": KEY}),
        json!({"public_key": KEY}),
    ]);
    let names = "name|resources|cpu|memory|storage|cpu_cores|memory_gb|storage_gb|size|image|ssh_key|key|stream_id";
    let leaves = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!({})),
        Just(json!([])),
        Just(Value::from("x".repeat(70_000))),
    ];
    let changes = prop::collection::vec((names, prop::option::of(leaves)), 0..3);
    let broken = prop::option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>()));
    let nearly_valid = (valid, changes, broken).prop_map(|(mut body, changes, broken)| {
        for (name, value) in changes {
            match value {
                Some(value) => body[name] = value,
                None => drop(body.as_object_mut().unwrap().remove(&name)),
            }
        }
        let mut bytes = body.to_string().into_bytes();
        if let Some((at, byte)) = broken {
            let at = at.index(bytes.len());
            if byte % 2 == 0 {
                bytes[at] = byte;
            } else {
                bytes.truncate(at);
            }
        }
        bytes
    });
    prop_oneof![
        6 => nearly_valid,
        1 => Just(Vec::new()),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ]
}

impl Provider {
    async fn ask_case(&self, case: &Case) -> Option<RawAnswer> {
        // Browsers ask so before they let a page call; that is no matter of the document.
        if case.method == Method::OPTIONS && case.headers.iter().any(|(name, _)| *name == "origin")
        {
            return None;
        }
        let mut request = Request::builder().method(&case.method).uri(&case.path);
        for (name, value) in &case.headers {
            request = request.header(*name, HeaderValue::from_bytes(value).ok()?);
        }
        // Not every text is an address that could be asked for.
        let request = request.body(Body::from(case.body.clone())).ok()?;
        if let Some((call, kind)) = case.fault {
            self.fixture.backend.next(call, Fault::Fail(kind));
        }
        let answer = self.api.answer(CLIENT, request);
        let response = tokio::time::timeout(PATIENCE, answer).await.expect("no answer");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Some(RawAnswer { status: parts.status, headers: parts.headers, body })
    }
}

#[test]
fn whatever_is_asked_is_answered_as_the_document_says() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let provider = runtime.block_on(async {
        let fixture = Fixture::default();
        let node = fixture.start().await;
        let gatekeeper = Gatekeeper::open(Default::default(), node.store.clone()).await.unwrap();
        Provider::with(fixture, node, &[], Some(gatekeeper))
    });
    let document = runtime.block_on(async {
        for name in ["abc", "def", "jobs"] {
            provider.make(name).await;
        }
        provider.ask_with(Method::GET, "/openapi.json", Body::empty()).await.body
    });
    let document = Document::of(&document);
    let mut seen = BTreeSet::new();
    let seen_by_cases = Mutex::new(&mut seen);
    let mut runner = TestRunner::new(ProptestConfig { cases: 1500, ..ProptestConfig::default() });
    let ran = runner.run(&any_case(), |case| {
        if let Some(answer) = runtime.block_on(provider.ask_case(&case)) {
            prop_assert_ne!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
            seen_by_cases.lock().unwrap().insert(answer.status.as_u16());
            if let Err(wrong) = document.check(&case.method, &case.path, &answer) {
                prop_assert!(false, "{} {}: {}", case.method, case.path, wrong);
            }
        }
        Ok(())
    });
    runtime.block_on(provider.node.stop(false));
    ran.unwrap();
    // Requests that are all refused for the same reason would show nothing.
    for status in [200, 201, 202, 401, 404, 405, 409, 422] {
        assert!(seen.contains(&status), "nothing was answered with {status}: {seen:?}");
    }
}
