//! `POST /check-ports`: tells a provider which of its ports can be reached from here.
//!
//! It would be a port scanner for anyone, were it not for its rules: it connects to nobody but who asks, never to a private
//! address unless the operator allows that, to so many ports and as often as the rules say, and all of that takes bounded time
//! and room. `golem-provider port-checker` serves it alone ([`serve`]); a provider serves it beside its API where its operator
//! wants that.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    http::StatusCode,
    response::Response,
    routing::post,
};
use futures_util::StreamExt;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    PREFIX,
    client::ClientAddress,
    edge::Edge,
    error::ApiError,
    health,
    limits::{Body, RateLimiter},
    server::{Answer, Server},
    versioned,
};
use crate::settings::{ApiSettings, CorsOrigins, public_ip::is_public};

const PATH: &str = "/check-ports";

/// How long one try to connect may take.
const CONNECT: Duration = Duration::from_secs(4);

/// A port that refuses or does not answer is tried once more after this.
const RETRY_AFTER: Duration = Duration::from_millis(300);

/// How long a check may take in all. What has not been tried by then is left out of the answer.
const DEADLINE: Duration = Duration::from_secs(28);

/// Ports of one check that are tried at the same time.
const AT_ONCE_PER_CHECK: usize = 64;

/// Ports of all checks that are tried at the same time.
const AT_ONCE: usize = 256;

/// Checks at the same time; one more is told to come back.
const MAX_CHECKS: usize = 64;

/// Who may have what checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortCheckRules {
    /// Whether callers at private and loopback addresses are checked too.
    pub allow_private: bool,
    /// Ports of one request.
    pub max_ports: usize,
    /// Requests a minute of one caller; 0 lifts the limit.
    pub requests_per_minute: u32,
}

impl Default for PortCheckRules {
    fn default() -> Self {
        Self { allow_private: false, max_ports: 100, requests_per_minute: 30 }
    }
}

/// Checks ports, by its rules.
struct PortChecker {
    rules: PortCheckRules,
    limiter: RateLimiter,
    checks: Semaphore,
    connections: Semaphore,
    /// Who is being checked. One check of each at a time.
    callers: Mutex<HashSet<IpAddr>>,
}

#[derive(Deserialize)]
struct Question {
    provider_ip: IpAddr,
    ports: Vec<u16>,
}

/// What was found out. Ports that there was no time for are missing.
#[derive(Debug, Serialize)]
struct Findings {
    /// Could any port be reached?
    success: bool,
    results: BTreeMap<u16, Finding>,
    message: String,
}

#[derive(Debug, Serialize)]
struct Finding {
    accessible: bool,
    error: Option<String>,
}

/// Serves checks and nothing else until `shutdown` resolves.
pub async fn serve(
    listener: TcpListener,
    rules: PortCheckRules,
    trusted_proxies: Vec<IpNet>,
    shutdown: impl Future<Output = ()>,
) {
    let settings = ApiSettings {
        bind: SocketAddr::from(([0, 0, 0, 0], 0)),
        // The checker has a limit of its own.
        rate_limit_per_minute: 0,
        require_signed_requests: false,
        trusted_proxies,
        cors_origins: CorsOrigins::Only(Vec::new()),
    };
    let edge = Alone(Arc::new(Edge::new(&settings, routes(rules).merge(health::routes()))));
    let server = Server { max_connections: 512, ..Server::default() };
    server.serve(listener, edge, shutdown).await;
}

/// The edge without the provider's routes.
#[derive(Clone)]
struct Alone(Arc<Edge>);

impl Answer for Alone {
    async fn answer(&self, peer: SocketAddr, request: Request) -> Response {
        self.0.answer(peer, request).await
    }
}

pub fn routes(rules: PortCheckRules) -> Router {
    let checker = Arc::new(PortChecker {
        limiter: RateLimiter::per_minute(rules.requests_per_minute),
        rules,
        checks: Semaphore::new(MAX_CHECKS),
        connections: Semaphore::new(AT_ONCE),
        callers: Mutex::default(),
    });
    Router::new().route(PATH, post(check)).route(&versioned(PATH), post(check)).with_state(checker)
}

/// Whether a path is the one of this resource.
pub fn is_port_check(path: &str) -> bool {
    path.strip_prefix(PREFIX).unwrap_or(path) == PATH
}

async fn check(
    State(checker): State<Arc<PortChecker>>,
    Extension(ClientAddress(caller)): Extension<ClientAddress>,
    Body(body): Body,
) -> Result<Json<Findings>, ApiError> {
    checker.limiter.check(caller).map_err(ApiError::rate_limited)?;
    let ports = admit(&checker.rules, caller, &body)?;
    let _turn = Turn::take(&checker, caller)?;
    let Ok(_room) = checker.checks.try_acquire() else {
        let detail = "this server checks as many providers as it can; try again in a minute";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail));
    };
    let results = checker.check_all(caller, ports).await;
    let open = results.values().filter(|finding| finding.accessible).count();
    let message = format!("{open} of {} ports of {caller} can be reached", results.len());
    Ok(Json(Findings { success: open > 0, results, message }))
}

/// The ports to check, where the rules allow that.
fn admit(rules: &PortCheckRules, caller: IpAddr, body: &[u8]) -> Result<BTreeSet<u16>, ApiError> {
    let Question { provider_ip, ports } = serde_json::from_slice(body).map_err(|error| {
        let detail = format!(
            "the body is not {{\"provider_ip\": \"203.0.113.5\", \"ports\": [7466]}}: {error}"
        );
        ApiError::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    })?;
    let refuse = |code, detail: String| Err(ApiError::new(StatusCode::FORBIDDEN, code, detail));
    if provider_ip.to_canonical() != caller {
        let detail = format!(
            "this server checks nobody but who asks: you are {caller}, and not {provider_ip}"
        );
        return refuse("not_your_address", detail);
    }
    if !rules.allow_private && !is_public(caller) {
        return refuse(
            "private_address",
            format!("{caller} is a private address; this server checks public ones"),
        );
    }
    let count = ports.len();
    let distinct: BTreeSet<u16> = ports.into_iter().collect();
    if distinct.is_empty() || distinct.contains(&0) || count > rules.max_ports {
        let detail = format!(
            "`ports` holds {count} ports; allowed is 1 to {} of them, from 1 to 65535",
            rules.max_ports
        );
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_ports", detail));
    }
    Ok(distinct)
}

/// That a caller is being checked.
struct Turn<'a> {
    checker: &'a PortChecker,
    caller: IpAddr,
}

impl<'a> Turn<'a> {
    fn take(checker: &'a PortChecker, caller: IpAddr) -> Result<Turn<'a>, ApiError> {
        let mut callers = checker.callers.lock().unwrap_or_else(PoisonError::into_inner);
        match callers.insert(caller) {
            true => Ok(Turn { checker, caller }),
            // As if it had asked too often, because it has: the one before is not finished.
            false => Err(ApiError::rate_limited(DEADLINE.as_secs())),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut callers = self.checker.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.remove(&self.caller);
    }
}

impl PortChecker {
    async fn check_all(&self, address: IpAddr, ports: BTreeSet<u16>) -> BTreeMap<u16, Finding> {
        let deadline = Instant::now() + DEADLINE;
        let mut trying = futures_util::stream::iter(ports)
            .map(|port| async move {
                let Ok(_room) = self.connections.acquire().await else { return None };
                Some((port, try_port(SocketAddr::new(address, port)).await))
            })
            .buffer_unordered(AT_ONCE_PER_CHECK);
        let mut results = BTreeMap::new();
        while let Ok(Some(found)) = timeout_at(deadline, trying.next()).await {
            results.extend(found);
        }
        results
    }
}

async fn try_port(address: SocketAddr) -> Finding {
    let mut error = None;
    for pause in [Duration::ZERO, RETRY_AFTER] {
        sleep(pause).await;
        error = match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Finding { accessible: true, error: None },
            Ok(Err(error)) => Some(match error.kind() {
                io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                    "no way there".to_owned()
                }
                _ => "the connection failed".to_owned(),
            }),
            Err(_) => Some(format!("no answer within {} s", CONNECT.as_secs())),
        };
    }
    Finding { accessible: false, error }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::body;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    const PUBLIC: &str = "8.8.8.8";

    fn rules() -> PortCheckRules {
        PortCheckRules::default()
    }

    fn refused(rules: &PortCheckRules, caller: &str, body: &Value) -> Option<StatusCode> {
        let body = body.to_string();
        let admitted = admit(rules, caller.parse().unwrap(), body.as_bytes());
        admitted.err().map(|error| axum::response::IntoResponse::into_response(error).status())
    }

    #[test]
    fn nobody_but_the_caller_is_checked_and_no_private_address_unless_allowed() {
        let asks = |provider_ip: &str| json!({ "provider_ip": provider_ip, "ports": [7466] });
        let forbidden = Some(StatusCode::FORBIDDEN);
        let private = PortCheckRules { allow_private: true, ..rules() };
        assert_eq!(refused(&rules(), PUBLIC, &asks(PUBLIC)), None);
        assert_eq!(refused(&rules(), PUBLIC, &asks("::ffff:8.8.8.8")), None);
        assert_eq!(refused(&rules(), PUBLIC, &asks("8.8.4.4")), forbidden);
        assert_eq!(refused(&private, PUBLIC, &asks("127.0.0.1")), forbidden);
        for address in ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "fd00::1"]
        {
            assert_eq!(refused(&rules(), address, &asks(address)), forbidden, "{address}");
            assert_eq!(refused(&private, address, &asks(address)), None, "{address}");
        }
    }

    #[test]
    fn only_so_many_ports_are_checked_and_only_such_as_exist() {
        let asks = |ports: Value| json!({ "provider_ip": PUBLIC, "ports": ports });
        let bad = Some(StatusCode::BAD_REQUEST);
        assert_eq!(refused(&rules(), PUBLIC, &asks((1..=100).collect())), None);
        for ports in [
            (1..=101).collect(),
            json!([]),
            json!([0]),
            json!([70000]),
            json!(["22"]),
            json!(vec![22; 101]),
            json!(null),
        ] {
            assert_eq!(refused(&rules(), PUBLIC, &asks(ports)), bad);
        }
        assert_eq!(refused(&rules(), PUBLIC, &json!({ "ports": [22] })), bad);
        assert_eq!(refused(&rules(), PUBLIC, &json!([])), bad);
    }

    async fn ask(edge: &Edge, body: &Value) -> (StatusCode, Value) {
        let request = Request::post(PATH).body(body::Body::from(body.to_string())).unwrap();
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 5));
        let response = edge.answer(peer, request).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn edge(rules: PortCheckRules) -> Edge {
        let settings = ApiSettings {
            bind: SocketAddr::from(([0, 0, 0, 0], 0)),
            rate_limit_per_minute: 0,
            require_signed_requests: false,
            trusted_proxies: Vec::new(),
            cors_origins: CorsOrigins::Any,
        };
        Edge::new(&settings, routes(rules))
    }

    #[tokio::test]
    async fn a_port_is_accessible_exactly_when_something_listens_on_it() {
        let edge = edge(PortCheckRules { allow_private: true, ..rules() });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let open = listener.local_addr().unwrap().port();
        let closed = crate::vms::testing::free_ports(1).start;
        let question = json!({ "provider_ip": "127.0.0.1", "ports": [open, closed, open] });
        let (status, answer) = ask(&edge, &question).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(
            answer["results"],
            json!({
                open.to_string(): { "accessible": true, "error": null },
                closed.to_string(): { "accessible": false, "error": "connection refused" },
            })
        );
        assert_eq!(answer["success"], true);
        assert!(answer["message"].as_str().unwrap().contains("1 of 2 ports"));
        let (status, answer) =
            ask(&edge, &json!({ "provider_ip": "127.0.0.1", "ports": [closed] })).await;
        assert_eq!((status, &answer["success"]), (StatusCode::OK, &json!(false)));
    }

    #[tokio::test]
    async fn a_caller_that_asks_too_often_is_told_when_to_come_back() {
        let edge = edge(PortCheckRules { allow_private: true, requests_per_minute: 1, ..rules() });
        let question = json!({ "provider_ip": "127.0.0.1", "ports": [] });
        assert_eq!(ask(&edge, &question).await.0, StatusCode::BAD_REQUEST);
        let (status, answer) = ask(&edge, &question).await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer["code"], "rate_limited");
    }
}
