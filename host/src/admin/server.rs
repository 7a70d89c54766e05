//! Answers on the socket. Whoever may open it may do everything here: it lies in the data directory and is open to this user
//! alone.

use std::{
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path as FilePath, PathBuf},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::{
    desk::{DeskError, PluginDesk},
    ending::Ending,
    pricing,
    protocol::{GrantChange, InstallRequest, PluginReport, Refusal, StopRequest, UseRequest},
    streams,
};
use crate::{
    doctor::{self, Examination},
    payments::{
        pricing::Pricing,
        streams::{Collector, LiveRules},
    },
    status::{Observer, Status},
    vms::VmService,
};

/// Where the socket of the provider with this data directory is.
pub fn socket_path(data_dir: &FilePath) -> PathBuf {
    data_dir.join("admin.sock")
}

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the socket {path} for `golem-provider plugin` and the like: {source}", path = path.display())]
pub struct BindError {
    path: PathBuf,
    source: io::Error,
}

/// The socket, gone with this value.
pub struct AdminListener {
    listener: UnixListener,
    _file: RemovedOnDrop,
}

struct RemovedOnDrop(PathBuf);

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        // One that is left is replaced by the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl AdminListener {
    /// Takes the place of a socket that an earlier process left. Only for whoever holds the data directory.
    ///
    /// # Errors
    /// The path is too long for a socket, or cannot be written.
    pub fn bind(data_dir: &FilePath) -> Result<Self, BindError> {
        let path = socket_path(data_dir);
        let bind = || -> io::Result<UnixListener> {
            // Closed to others before anybody can see it: made in a directory that nobody else enters, then moved.
            let nursery = data_dir.join(".admin");
            match std::fs::remove_dir_all(&nursery) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            std::fs::DirBuilder::new().mode(0o700).create(&nursery)?;
            let newborn = nursery.join("s");
            let listener = UnixListener::bind(&newborn)?;
            std::fs::set_permissions(&newborn, std::fs::Permissions::from_mode(0o600))?;
            std::fs::rename(&newborn, &path)?;
            std::fs::remove_dir(&nursery)?;
            Ok(listener)
        };
        let listener = bind().map_err(|source| BindError { path: path.clone(), source })?;
        Ok(Self { listener, _file: RemovedOnDrop(path) })
    }
}

/// What the socket leads to.
pub struct Doors {
    pub desk: PluginDesk,
    pub vms: VmService,
    pub pricing: Pricing,
    pub collector: Collector,
    pub payment_rules: LiveRules,
    pub observer: Observer,
    pub ending: Ending,
}

/// Answers until `stop`, and lets changes under way end.
pub async fn serve(listener: AdminListener, doors: Doors, stop: CancellationToken) {
    let AdminListener { listener, _file } = listener;
    let served =
        axum::serve(listener, router(doors)).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::warn!("the socket for the operator's commands has failed: {error}");
    }
}

fn router(doors: Doors) -> Router {
    let Doors { desk, vms, pricing, collector, payment_rules, observer, ending } = doors;
    Router::new()
        .route("/examinations", get(examine))
        .route("/plugins", get(list).post(install))
        .route("/plugins/{name}", delete(remove))
        .route("/plugins/{name}/reload", post(reload))
        .route("/plugins/{name}/enable", post(enable))
        .route("/plugins/{name}/disable", post(disable))
        .route("/plugins/{name}/grant", post(grant))
        .route("/plugins/{name}/revoke", post(revoke))
        .route("/plugins-in-use", post(use_plugins))
        .with_state(desk)
        .merge(Router::new().route("/vms/{id}", delete(delete_vm)).with_state(vms))
        .merge(pricing::routes(pricing))
        .merge(streams::routes(collector, payment_rules))
        .merge(Router::new().route("/status", get(status)).with_state(observer))
        .merge(Router::new().route("/stop", post(end)).with_state(ending))
}

async fn status(State(observer): State<Observer>) -> Json<Status> {
    Json(observer.status().await)
}

/// The operator's machines are the operator's to delete, whoever they were made for.
async fn delete_vm(
    State(vms): State<VmService>,
    Path(id): Path<String>,
) -> Result<Json<()>, DeskError> {
    tracing::info!(vm.id = id, "a VM is deleted by `golem-provider vm delete`");
    Ok(Json(vms.delete(&id).await?))
}

async fn end(State(ending): State<Ending>, Json(request): Json<StopRequest>) -> Json<()> {
    tracing::info!("told to end by `golem-provider stop`");
    ending.begin(request.stop_vms);
    Json(())
}

/// Tries every plugin as at a start, beside those that work.
async fn examine(State(desk): State<PluginDesk>) -> Json<Vec<Examination>> {
    Json(doctor::examine(desk.catalog()).await)
}

async fn list(State(desk): State<PluginDesk>) -> Json<Vec<PluginReport>> {
    Json(desk.list().await)
}

async fn install(
    State(desk): State<PluginDesk>,
    Json(request): Json<InstallRequest>,
) -> Result<Json<PluginReport>, DeskError> {
    // A caller that goes away leaves no half of a change.
    finished(async move { desk.install(&request.file, &request.sha256, &request.grants).await })
        .await
        .map(Json)
}

async fn remove(
    State(desk): State<PluginDesk>,
    Path(name): Path<String>,
) -> Result<Json<()>, DeskError> {
    finished(async move { desk.remove(&name).await }).await.map(Json)
}

async fn reload(
    State(desk): State<PluginDesk>,
    Path(name): Path<String>,
) -> Result<Json<PluginReport>, DeskError> {
    finished(async move { desk.reload(&name).await }).await.map(Json)
}

async fn enable(
    State(desk): State<PluginDesk>,
    Path(name): Path<String>,
) -> Result<Json<()>, DeskError> {
    finished(async move { desk.set_enabled(&name, true).await }).await.map(Json)
}

async fn disable(
    State(desk): State<PluginDesk>,
    Path(name): Path<String>,
) -> Result<Json<()>, DeskError> {
    finished(async move { desk.set_enabled(&name, false).await }).await.map(Json)
}

async fn grant(
    State(desk): State<PluginDesk>,
    Path(name): Path<String>,
    Json(change): Json<GrantChange>,
) -> Result<Json<()>, DeskError> {
    finished(async move { desk.grant(&name, &change.grants).await }).await.map(Json)
}

async fn revoke(
    State(desk): State<PluginDesk>,
    Path(name): Path<String>,
    Json(change): Json<GrantChange>,
) -> Result<Json<()>, DeskError> {
    finished(async move { desk.revoke(&name, &change.grants).await }).await.map(Json)
}

async fn use_plugins(
    State(desk): State<PluginDesk>,
    Json(request): Json<UseRequest>,
) -> Result<Json<()>, DeskError> {
    desk.use_plugins(request.kind, &request.names).map(Json)
}

/// Runs a change to its end, whatever becomes of the connection that asked for it.
async fn finished<T: Send + 'static>(
    change: impl Future<Output = Result<T, DeskError>> + Send + 'static,
) -> Result<T, DeskError> {
    match tokio::spawn(change).await {
        Ok(result) => result,
        Err(error) => Err(crate::plugins::installation::InstallError::BrokenOff(error).into()),
    }
}

impl IntoResponse for DeskError {
    fn into_response(self) -> Response {
        (StatusCode::UNPROCESSABLE_ENTITY, Json(Refusal { detail: self.to_string() }))
            .into_response()
    }
}
