//! VMs: made, listed, looked at, stopped, started, given keys, deleted.
//!
//! `{id}` is the requestor's name or the instance id. Whether a caller may see and change the VM is decided where it is found
//! ([`ThisVm`]), so that no handler can forget to ask. Sub-resources of a VM that is called `jobs` lie where jobs do, so they
//! have routes of their own.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{FromRequestParts, Query, RawPathParams, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header, request::Parts, uri::Authority},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{RefOr, schema::Schema},
};
use uuid::Uuid;

use super::{
    ApiState, PREFIX,
    create::{self, CreateBody},
    error::{ApiError, ErrorBody, Problem, ValidationBody},
    limits::Body,
    openapi, payments,
    signed::{Caller, check_owner},
    time, versioned,
};
use crate::{
    payments::streams::PaymentStatus,
    vms::{NewVm, Ownership, Phase, Resources, Vm, VmError},
};

/// What handlers are given.
pub type AnyState = Arc<ApiState>;

/// A VM, as clients see it.
#[derive(Serialize, ToSchema)]
#[schema(as = Vm)]
pub struct VmBody<'a> {
    /// The instance id.
    #[schema(example = "golem-my-webserver-20250219-130424")]
    id: &'a str,
    #[schema(example = "my-webserver")]
    name: &'a str,
    /// `creating`, `running`, `stopping`, `stopped` or `error`.
    #[schema(example = "running")]
    status: &'static str,
    /// The machine's own address; null while it is being made.
    #[schema(example = "192.168.64.2")]
    ip_address: Option<&'a str>,
    /// The provider's port that leads to the machine's SSH; null while it is being made.
    #[schema(example = 50800)]
    ssh_port: Option<u16>,
    resources: SizeOut,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "time::serialize")]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "time::serialize")]
    updated_at: Timestamp,
    /// What went wrong, if anything did.
    error_message: Option<&'a str>,
    /// Finer than `status`: also tells `starting`, `deleting` and `failed`.
    #[schema(example = "running")]
    phase: &'static str,
    #[schema(example = "24.04")]
    image: &'a str,
    /// The plugin that runs it.
    #[schema(example = "qemu")]
    backend: &'a str,
    /// How far the change under way has come.
    progress: Option<ProgressBody<'a>>,
    /// The address that it belongs to, if any.
    #[schema(example = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266")]
    owner: Option<String>,
    /// Whether every request about it has to be signed by its owner.
    needs_signature: bool,
    /// How its payment stands, where a stream pays for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    payment: Option<Arc<PaymentStatus>>,
}

/// The size of a VM: cores, and GB of memory and storage.
#[derive(Serialize, ToSchema)]
#[schema(as = Size)]
pub struct SizeOut {
    cpu: u32,
    memory: u32,
    storage: u32,
}

/// How far a change has come.
#[derive(Serialize, ToSchema)]
#[schema(as = Progress)]
pub struct ProgressBody<'a> {
    #[schema(example = "downloading image")]
    stage: &'a str,
    #[schema(maximum = 100)]
    percent: Option<u8>,
}

impl<'a> VmBody<'a> {
    pub fn of(vm: &'a Vm, payment: Option<Arc<PaymentStatus>>) -> Self {
        let Resources { cpu_cores, memory_gb, storage_gb } = vm.resources;
        let is_new = vm.phase == Phase::Creating;
        Self {
            id: &vm.id,
            name: &vm.name,
            status: vm.phase.status(),
            ip_address: vm.ip_address.as_deref().filter(|_| !is_new),
            ssh_port: vm.ssh_port.filter(|_| !is_new),
            resources: SizeOut { cpu: cpu_cores, memory: memory_gb, storage: storage_gb },
            created_at: vm.created_at,
            updated_at: vm.updated_at,
            error_message: vm.error_message.as_deref(),
            phase: vm.phase.name(),
            image: &vm.image,
            backend: &vm.backend,
            progress: vm
                .progress
                .as_ref()
                .map(|progress| ProgressBody { stage: &progress.stage, percent: progress.percent }),
            owner: vm.ownership.owner().map(|owner| owner.to_checksum(None)),
            needs_signature: vm.ownership.is_proven(),
            payment,
        }
    }

    fn answer(vm: &'a Vm, state: &ApiState) -> Json<VmBody<'a>> {
        Json(VmBody::of(vm, state.payment(vm)))
    }
}

/// That a VM is being made.
#[derive(Serialize, ToSchema)]
pub struct Accepted<'a> {
    #[schema(value_type = String, format = "uuid")]
    job_id: Uuid,
    /// The VM's name.
    #[schema(example = "my-webserver")]
    vm_id: &'a str,
    #[schema(example = "creating")]
    status: &'static str,
}

/// How to log in to a VM.
#[derive(Serialize, ToSchema)]
pub struct Access<'a> {
    #[schema(example = "203.0.113.5")]
    ssh_host: String,
    /// Null while the VM is being made.
    #[schema(example = 50800)]
    ssh_port: Option<u16>,
    /// The VM's name.
    #[schema(example = "my-webserver")]
    vm_id: &'a str,
    /// The instance id, under a name from when there was one backend.
    #[schema(example = "golem-my-webserver-20250219-130424")]
    multipass_name: &'a str,
    #[schema(example = "running")]
    status: &'static str,
}

/// That a key was added.
#[derive(Serialize, ToSchema)]
pub struct KeyAdded<'a> {
    /// The VM's name.
    #[schema(example = "my-webserver")]
    vm_id: &'a str,
    #[schema(example = "added")]
    status: &'static str,
}

/// Nothing to tell.
pub struct Null;

impl PartialSchema for Null {
    fn schema() -> RefOr<Schema> {
        openapi::schema(json!({"type": "null"}))
    }
}

impl ToSchema for Null {}

/// The VM that a path names, of a caller who may see and change it.
///
/// Routes without `{id}` are those of the VM that is called `jobs`: beside `/vms/jobs/{job_id}`, a router would take
/// `/vms/jobs/stop` for a job.
///
/// What is done is done to this VM, by its instance id: its name may come to mean another's VM meanwhile.
pub struct ThisVm(pub Arc<Vm>);

impl FromRequestParts<AnyState> for ThisVm {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AnyState) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        // Not UTF-8, so no VM's name.
        let params = params.map_err(|_| {
            ApiError::new(
                StatusCode::NOT_FOUND,
                "vm_not_found",
                "Not Found: this provider has no VM of that name",
            )
        })?;
        let id = params.iter().find(|(name, _)| *name == "id").map_or("jobs", |(_, id)| id);
        let vm = state.vms.get(id)?;
        if vm.ownership.is_proven() {
            check_owner(vm.ownership, Caller::of(parts), "this VM")?;
        }
        Ok(Self(vm))
    }
}

pub fn routes() -> Router<AnyState> {
    let of_vm: [(&str, MethodRouter<AnyState>); 5] = [
        ("access", get(access)),
        ("stop", post(stop)),
        ("start", post(start)),
        ("ssh-keys", post(add_key)),
        ("stream", get(payments::stream)),
    ];
    let routes = Router::new()
        .route(&versioned("/vms"), get(list).post(create))
        .route(&versioned("/vms/{id}"), get(one).delete(delete));
    of_vm.into_iter().fold(routes, |routes, (name, methods)| {
        routes
            .route(&versioned(&format!("/vms/{{id}}/{name}")), methods.clone())
            .route(&versioned(&format!("/vms/jobs/{name}")), methods)
    })
}

/// What `POST /vms` takes besides its body.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CreateQuery {
    /// Whether to answer at once, with a job, instead of when the VM runs.
    #[serde(rename = "async")]
    #[param(value_type = Option<bool>)]
    at_once: Option<String>,
}

/// Make a VM
///
/// Whatever can be refused is refused before anything is made. Without `async=true` the answer comes when the VM runs; the VM
/// is made whether or not the client waits for it. One that is made by a signed request belongs to its signer, and nobody else
/// can see or change it.
#[utoipa::path(post, path = "/vms", context_path = "/api/v1", tag = "vms",
    params(CreateQuery), request_body = CreateBody,
    responses(
        (status = 201, description = "It runs", body = VmBody),
        (status = 202, description = "It is being made", body = Accepted),
        (status = 400, description = "Unknown image, a stream that does not pay for it, or a backend that refuses", body = ErrorBody),
        (status = 403, description = "Signed by somebody else than who pays", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The name is in use, or there is no room", body = ErrorBody),
        (status = 413, description = "The body is too long", body = ErrorBody),
        (status = 422, description = "The request is wrong", body = ValidationBody),
        (status = 501, description = "The backend cannot do that", body = ErrorBody),
        (status = 502, description = "The backend failed", body = ErrorBody),
        (status = 503, description = "No backend, one that cannot work now, no port that is known to be reachable, or a chain that does not answer", body = ErrorBody),
        (status = 504, description = "The backend took too long", body = ErrorBody),
    ))]
pub async fn create(
    State(state): State<AnyState>,
    Caller(signer): Caller,
    query: Result<Query<CreateQuery>, QueryRejection>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    if state.settings.require_signed_requests && signer.is_none() {
        return Err(ApiError::only_signed());
    }
    let at_once = at_once(query)?;
    let create::Wanted { vm, stream } = create::read(&body)?;
    let payment = match state.streams.as_ref().filter(|streams| streams.demand(signer)) {
        Some(streams) => Some(streams.admit(stream.as_deref(), vm.resources.into()).await?),
        None => None,
    };
    let ownership = Ownership::of(signer, payment.as_ref().map(|ticket| ticket.payer()))?;
    let ticket = state.vms.create(NewVm { ownership, payment, ..vm }).await?;
    state.streams_have_changed();
    if at_once {
        let accepted =
            Accepted { job_id: ticket.job.id, vm_id: &ticket.vm.name, status: "creating" };
        let job = format!("{PREFIX}/vms/jobs/{}", ticket.job.id);
        return Ok(
            (StatusCode::ACCEPTED, [(header::LOCATION, job)], Json(accepted)).into_response()
        );
    }
    let vm = ticket.finished().await?;
    let location = format!("{PREFIX}/vms/{}", vm.name);
    let vm = VmBody::answer(&vm, &state);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], vm).into_response())
}

fn at_once(query: Result<Query<CreateQuery>, QueryRejection>) -> Result<bool, ApiError> {
    let refuse = |msg: String| {
        ApiError::validation(vec![Problem {
            loc: vec!["query", "async"],
            msg,
            kind: "bool_parsing",
        }])
    };
    let Query(CreateQuery { at_once }) = query.map_err(|error| refuse(error.body_text()))?;
    let Some(text) = at_once else { return Ok(false) };
    create::flag(&text).ok_or_else(|| refuse("async has to be true or false".into()))
}

/// All VMs, the oldest first
///
/// Those that were made by signed requests are listed to their owners alone.
#[utoipa::path(get, path = "/vms", context_path = "/api/v1", tag = "vms",
    responses((status = 200, body = Vec<VmBody>)))]
pub async fn list(State(state): State<AnyState>, caller: Caller) -> Response {
    let vms = state.vms.list();
    Json(visible(&vms, caller, &state).collect::<Vec<_>>()).into_response()
}

/// The VMs that a caller may know of.
pub fn visible<'a>(
    vms: &'a [Arc<Vm>],
    Caller(caller): Caller,
    state: &'a ApiState,
) -> impl Iterator<Item = VmBody<'a>> {
    let may_see = move |vm: &&Arc<Vm>| vm.ownership.admits(caller).is_ok();
    vms.iter().filter(may_see).map(|vm| VmBody::of(vm, state.payment(vm)))
}

/// A VM
#[utoipa::path(get, path = "/vms/{id}", context_path = "/api/v1", tag = "vms",
    params(("id" = String, Path, description = "Name or instance id")),
    responses(
        (status = 200, body = VmBody),
        (status = 403, description = "Another's", body = ErrorBody),
        (status = 404, body = ErrorBody),
    ))]
pub async fn one(State(state): State<AnyState>, ThisVm(vm): ThisVm) -> Response {
    let vm = state.written.json(&vm, state.payment(&vm));
    ([(header::CONTENT_TYPE, "application/json")], vm).into_response()
}

/// How to log in to a VM
#[utoipa::path(get, path = "/vms/{id}/access", context_path = "/api/v1", tag = "vms",
    params(("id" = String, Path, description = "Name or instance id")),
    responses(
        (status = 200, body = Access),
        (status = 202, description = "It is being made", body = Access),
        (status = 403, description = "Another's", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, description = "It could not be made", body = ErrorBody),
    ))]
pub async fn access(
    State(state): State<AnyState>,
    ThisVm(vm): ThisVm,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let body = VmBody::of(&vm, None);
    let status = match (vm.phase, body.ssh_port) {
        (Phase::Creating, _) => StatusCode::ACCEPTED,
        (_, Some(_)) => StatusCode::OK,
        (_, None) => {
            let reason = vm.error_message.as_deref().unwrap_or("it could not be made");
            let detail = format!("VM '{}' cannot be logged in to: {reason}", vm.name);
            return Err(ApiError::new(StatusCode::CONFLICT, "wrong_state", detail));
        }
    };
    let access = Access {
        ssh_host: ssh_host(&state, &headers),
        ssh_port: body.ssh_port,
        vm_id: body.name,
        multipass_name: body.id,
        status: body.status,
    };
    Ok((status, Json(access)).into_response())
}

/// The address by which the provider is known, else the one the client has used.
fn ssh_host(state: &ApiState, headers: &HeaderMap) -> String {
    let known = state.public_address().map(|address| address.to_string());
    let used = || {
        headers
            .get(header::HOST)?
            .to_str()
            .ok()?
            .parse::<Authority>()
            .ok()
            .map(|host| host.host().to_owned())
    };
    known.or_else(used).unwrap_or_else(|| state.settings.bind.ip().to_string())
}

/// Stop a VM
///
/// Answers when it has stopped. One that is stopped already stays so.
#[utoipa::path(post, path = "/vms/{id}/stop", context_path = "/api/v1", tag = "vms",
    params(("id" = String, Path, description = "Name or instance id")),
    responses(
        (status = 200, body = VmBody),
        (status = 400, description = "A backend that refuses", body = ErrorBody),
        (status = 403, description = "Another's", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, description = "Another change is under way, or the VM cannot be stopped", body = ErrorBody),
        (status = 501, description = "The backend cannot do that", body = ErrorBody),
        (status = 502, description = "The backend failed", body = ErrorBody),
        (status = 503, description = "The backend cannot work now", body = ErrorBody),
        (status = 504, description = "The backend took too long", body = ErrorBody),
    ))]
pub async fn stop(State(state): State<AnyState>, ThisVm(vm): ThisVm) -> Result<Response, ApiError> {
    let vm = state.vms.stop(&vm.id).await?;
    state.streams_have_changed();
    Ok(VmBody::answer(&vm, &state).into_response())
}

/// Start a VM
///
/// Answers when SSH does. One that runs already goes on. One that a stream pays for starts only if that goes on paying: top it up
/// where it does not, or name another one.
#[utoipa::path(post, path = "/vms/{id}/start", context_path = "/api/v1", tag = "vms",
    params(("id" = String, Path, description = "Name or instance id")), request_body(content = Option<create::StartBody>),
    responses(
        (status = 200, body = VmBody),
        (status = 400, description = "A stream that does not pay any more, or a backend that refuses", body = ErrorBody),
        (status = 403, description = "Another's", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "Another change is under way, or the VM cannot be started", body = ErrorBody),
        (status = 413, description = "The body is too long", body = ErrorBody),
        (status = 422, description = "The request is wrong", body = ValidationBody),
        (status = 501, description = "The backend cannot do that", body = ErrorBody),
        (status = 502, description = "The backend failed", body = ErrorBody),
        (status = 503, description = "The backend cannot work now", body = ErrorBody),
        (status = 504, description = "The backend took too long", body = ErrorBody),
    ))]
pub async fn start(
    State(state): State<AnyState>,
    Caller(signer): Caller,
    ThisVm(vm): ThisVm,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let another = create::read_start(&body)?;
    if let Some(streams) = state.streams.as_ref().filter(|streams| streams.demand(signer)) {
        match another {
            Some(another) => {
                let ticket = streams.admit(Some(&another), vm.resources.into()).await?;
                // It goes on belonging to whom it belonged to.
                Ownership::of(vm.ownership.owner(), Some(ticket.payer()))?;
                streams.rebind(ticket, &vm.id, &vm.name).await.map_err(VmError::from)?;
            }
            None if vm.phase != Phase::Running => streams.may_start(&vm.id).await?,
            None => {}
        }
    }
    let vm = state.vms.start_vm(&vm.id).await?;
    state.streams_have_changed();
    Ok(VmBody::answer(&vm, &state).into_response())
}

/// Let one more key log in as root
#[utoipa::path(post, path = "/vms/{id}/ssh-keys", context_path = "/api/v1", tag = "vms",
    params(("id" = String, Path, description = "Name or instance id")), request_body = create::KeyBody,
    responses(
        (status = 200, body = KeyAdded),
        (status = 400, description = "A backend that refuses", body = ErrorBody),
        (status = 403, description = "Another's", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM does not run, or another change is under way", body = ErrorBody),
        (status = 413, description = "The body is too long", body = ErrorBody),
        (status = 422, description = "The request is wrong", body = ValidationBody),
        (status = 501, description = "The backend cannot do that", body = ErrorBody),
        (status = 502, description = "The backend failed", body = ErrorBody),
        (status = 503, description = "The backend cannot work now", body = ErrorBody),
        (status = 504, description = "The backend took too long", body = ErrorBody),
    ))]
pub async fn add_key(
    State(state): State<AnyState>,
    ThisVm(vm): ThisVm,
    Body(body): Body,
) -> Result<Response, ApiError> {
    state.vms.add_ssh_key(&vm.id, create::read_key(&body)?).await?;
    Ok(Json(KeyAdded { vm_id: &vm.name, status: "added" }).into_response())
}

/// Delete a VM with everything it holds
///
/// Answers `null` when it is gone. One that is being made is given up.
#[utoipa::path(delete, path = "/vms/{id}", context_path = "/api/v1", tag = "vms",
    params(("id" = String, Path, description = "Name or instance id")),
    responses(
        (status = 200, description = "It is gone", body = Null),
        (status = 400, description = "A backend that refuses", body = ErrorBody),
        (status = 403, description = "Another's", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, description = "Another change is under way", body = ErrorBody),
        (status = 501, description = "The backend cannot do that", body = ErrorBody),
        (status = 502, description = "The backend failed", body = ErrorBody),
        (status = 503, description = "The backend cannot work now", body = ErrorBody),
        (status = 504, description = "The backend took too long", body = ErrorBody),
    ))]
pub async fn delete(
    State(state): State<AnyState>,
    ThisVm(vm): ThisVm,
) -> Result<Json<()>, ApiError> {
    state.vms.delete(&vm.id).await?;
    state.streams_have_changed();
    state.stream_is_over();
    Ok(Json(()))
}
