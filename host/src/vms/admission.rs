//! Whether one more VM is taken, and with what: decided for one create at a time, written down before the next.

use std::{collections::BTreeSet, sync::Arc};

use jiff::tz::TimeZone;
use uuid::Uuid;

use super::{
    CreateTicket, VmError,
    lifecycle::Operation,
    model::{self, Job, JobStatus, NewVm, Phase, Vm},
    service::Inner,
};
use crate::{
    faults::{self, FaultPoint},
    proxy::OpenError,
    resources::Amounts,
    store::{JobRecord, VmRecord},
};

impl Inner {
    pub(super) async fn admit(self: &Arc<Inner>, new: NewVm) -> Result<CreateTicket, VmError> {
        let name = new.name.as_str();
        let backend = self.backends.choose(new.backend.as_deref())?;
        self.registry.name_is_free(name)?;
        let image = new.image.unwrap_or_else(|| self.config.default_image.clone());
        // Before the lock: a slow backend holds nobody else up.
        let known: Vec<String> =
            self.images_of(&backend).await?.into_iter().map(|image| image.alias).collect();
        if !known.contains(&image) {
            return Err(VmError::UnknownImage { image, known });
        }

        let _one_at_a_time = self.admission.lock().await;
        self.check_open()?;
        let replaced = self.registry.name_is_free(name)?;
        let (held, ports_in_use) = self.registry.held();
        // A VM that holds anything holds a port.
        if ports_in_use.len() >= self.config.max_vms as usize {
            return Err(VmError::TooManyVms { max: self.config.max_vms });
        }
        let shortage = self.resources.admit(held, Amounts::from(new.resources)).await;
        shortage.map_err(|shortage| VmError::Insufficient { message: shortage.to_string() })?;
        let port = self.open_free_port(ports_in_use).await?;
        faults::reached(FaultPoint::AdmitPortOpen);

        let now = model::now();
        let vm = Vm {
            id: format!("golem-{name}-{}", now.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%S")),
            name: name.to_owned(),
            backend: backend.name().to_owned(),
            phase: Phase::Creating,
            resources: new.resources,
            image,
            ownership: new.ownership,
            ssh_port: Some(port),
            ip_address: None,
            created_at: now,
            updated_at: now,
            error_message: None,
            progress: None,
        };
        let job = Job {
            id: Uuid::new_v4(),
            vm_name: name.to_owned(),
            ownership: new.ownership,
            status: JobStatus::Creating,
            error: None,
            created_at: now,
            updated_at: now,
        };
        let job = JobRecord { job, vm_id: vm.id.clone() };
        let record = VmRecord { vm, ssh_key: new.ssh_key.map(|key| key.to_string()) };
        let (record, job) = match self.store.admit(record, job, replaced.clone(), new.payment).await
        {
            Ok(admitted) => admitted,
            Err(error) => {
                self.proxy.close(port).await;
                return Err(error.into());
            }
        };
        faults::reached(FaultPoint::AdmitWritten);
        let vm = Arc::new(record.vm.clone());
        tracing::info!(
            vm.id = vm.id,
            vm.name = vm.name,
            port,
            image = vm.image,
            cpu_cores = vm.resources.cpu_cores,
            memory_gb = vm.resources.memory_gb,
            storage_gb = vm.resources.storage_gb,
            owner = vm.ownership.owner().map(tracing::field::display),
            "a VM was admitted"
        );
        let slot = self.registry.admit(record, job.clone(), replaced.as_deref());
        let ticket = CreateTicket::new(job.job, vm, slot.outcome());
        self.spawn(slot, Operation::Create, None, None);
        Ok(ticket)
    }

    /// Opens the lowest port that no VM holds and nothing else on this machine has. Nothing is forwarded yet.
    async fn open_free_port(&self, in_use: BTreeSet<u16>) -> Result<u16, VmError> {
        for port in self.ports.candidates(in_use) {
            let _claim = self.ports.claim(port);
            match self.proxy.open(port, None).await {
                Ok(()) => return Ok(port),
                Err(error @ (OpenError::InUse(_) | OpenError::AlreadyOpen(_))) => {
                    tracing::debug!(port, %error, "the next port is tried");
                }
                Err(error) => tracing::warn!(port, %error, "the next port is tried"),
            }
        }
        let range = self.ports.range();
        if self.ports.none_is_usable() {
            return Err(VmError::NoVerifiedPort { from: range.start, to: range.end });
        }
        Err(VmError::NoPort { from: range.start, to: range.end })
    }
}
