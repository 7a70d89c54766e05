//! A noticeboard that providers list themselves on: one JSON document each. It keeps what it is given and knows nothing about it.

use std::{
    collections::BTreeMap,
    env,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::optional;

/// Where the component is that `cargo xtask examples` has built, if not in the target directory.
const PYTHON_VARIABLE: &str = "GOLEM_TEST_NOTICEBOARD_PYTHON";

/// Answers whoever asks. Ends with this value.
#[derive(Debug)]
pub struct Noticeboard {
    address: SocketAddr,
    shared: Shared,
    serving: JoinHandle<()>,
}

type Shared = Arc<Mutex<Board>>;

#[derive(Debug, Default)]
struct Board {
    /// By the id in their address.
    documents: BTreeMap<String, Value>,
    /// Whoever writes has to say so.
    token: Option<String>,
    /// What every request is answered instead.
    trouble: Option<(u16, String)>,
}

impl Noticeboard {
    /// On a free port of 127.0.0.1, empty.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start() -> Result<Noticeboard> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listening as a board")?;
        let address = listener.local_addr()?;
        let shared = Shared::default();
        let routes = Router::new()
            .route("/board", get(list))
            .route("/board/{id}", get(read).put(write).delete(remove))
            .with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            // It serves until it is dropped.
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Noticeboard { address, shared, serving })
    }

    /// For the setting `url`.
    pub fn url(&self) -> String {
        format!("http://{}/board", self.address)
    }

    /// The document under an id.
    pub fn document(&self, id: &str) -> Option<Value> {
        lock(&self.shared).documents.get(id).cloned()
    }

    /// Writes as anybody could.
    pub fn pin(&self, id: &str, document: Value) {
        lock(&self.shared).documents.insert(id.to_owned(), document);
    }

    /// From now on whoever writes needs this.
    pub fn ask_for_token(&self, token: &str) {
        lock(&self.shared).token = Some(token.to_owned());
    }

    /// From now on this is the answer to everything.
    pub fn fail_with(&self, status: u16, body: &str) {
        lock(&self.shared).trouble = Some((status, body.to_owned()));
    }

    /// From now on it works again.
    pub fn recover(&self) {
        lock(&self.shared).trouble = None;
    }
}

impl Drop for Noticeboard {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock(shared: &Mutex<Board>) -> MutexGuard<'_, Board> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    fn refusal(&self, writer: Option<&HeaderMap>) -> Option<Response> {
        if let Some((status, body)) = &self.trouble {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::IM_A_TEAPOT);
            return Some((status, body.clone()).into_response());
        }
        let token = self.token.as_ref()?;
        let said = writer?.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let knows = said == Some(format!("Bearer {token}").as_str());
        (!knows).then(|| (StatusCode::UNAUTHORIZED, "who are you?").into_response())
    }
}

async fn list(State(shared): State<Shared>) -> Response {
    let board = lock(&shared);
    let all = || axum::Json(board.documents.values().cloned().collect::<Vec<_>>()).into_response();
    board.refusal(None).unwrap_or_else(all)
}

async fn read(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    let board = lock(&shared);
    let one = || match board.documents.get(&id) {
        Some(document) => axum::Json(document.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    };
    board.refusal(None).unwrap_or_else(one)
}

async fn write(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut board = lock(&shared);
    if let Some(refusal) = board.refusal(Some(&headers)) {
        return refusal;
    }
    match serde_json::from_slice(&body) {
        Ok(document) => {
            board.documents.insert(id, document);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

async fn remove(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let mut board = lock(&shared);
    if let Some(refusal) = board.refusal(Some(&headers)) {
        return refusal;
    }
    match board.documents.remove(&id) {
        Some(_) => StatusCode::NO_CONTENT.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The component of `sdk/examples/noticeboard-python`. Absent where what builds it could not be installed, which is said.
///
/// # Errors
/// When it is not built although `CI` is set.
pub fn python_component() -> Result<Option<PathBuf>> {
    let named = env::var_os(PYTHON_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let test = env::current_exe().context("finding this test")?;
    let beside_test = test
        .ancestors()
        .map(|directory| directory.join("examples-built/noticeboard-python.wasm"))
        .find(|file| file.is_file());
    let found = named.or(beside_test);
    optional::tell(
        found.is_some(),
        "the example in Python is not built: run `cargo xtask examples`",
    );
    Ok(found)
}
