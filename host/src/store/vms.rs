//! The table of VMs, and of the ids that were ever issued.

use std::collections::HashSet;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params, params};

use super::{JobRecord, Store, StoreError, jobs, streams};
use crate::{
    owners::Address,
    payments::streams::Ticket,
    vms::model::{Ownership, Phase, Resources, Vm},
};

/// A VM with what only its making needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRecord {
    /// Its `progress` is not kept.
    pub vm: Vm,
    /// The key given with the create, in OpenSSH's format.
    pub ssh_key: Option<String>,
}

impl Store {
    /// All VMs there are, oldest first.
    ///
    /// # Errors
    /// See [`StoreError`]; so for every call here.
    pub async fn vms(&self) -> Result<Vec<VmRecord>, StoreError> {
        self.read(all).await
    }

    /// Writes down a new VM, its job and the stream that pays for it, all or nothing, and drops the record of the failed VM whose name it takes. Gives
    /// the VM and its job back with the id the VM has got: the one proposed, or that one with a number where it had been
    /// issued before.
    pub async fn admit(
        &self,
        mut record: VmRecord,
        mut job: JobRecord,
        replaces: Option<String>,
        payment: Option<Ticket>,
    ) -> Result<(VmRecord, JobRecord), StoreError> {
        self.write(move |transaction| {
            if let Some(id) = replaces {
                transaction.execute("DELETE FROM vms WHERE id = ?1", [id])?;
            }
            record.vm.id = issue(transaction, &record.vm.id)?;
            job.vm_id.clone_from(&record.vm.id);
            insert(transaction, &record)?;
            jobs::insert(transaction, &job)?;
            if let Some(ticket) = payment {
                let VmRecord { vm, .. } = &record;
                streams::bind(transaction, &ticket.bind(&vm.id, &vm.name, vm.created_at))?;
            }
            Ok((record, job))
        })
        .await
    }

    /// Writes down what may change in a VM's life, and with it what became of its job. The stream of one that failed to be made
    /// is let go.
    pub async fn save(&self, vm: Vm, job: Option<JobRecord>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let changed = transaction.execute(
                "UPDATE vms SET phase = :phase, ssh_port = :ssh_port, ip_address = :ip_address, updated_at = :updated_at,
                     error_message = :error_message
                 WHERE id = :id",
                named_params! {
                    ":id": vm.id,
                    ":phase": vm.phase.name(),
                    ":ssh_port": vm.ssh_port,
                    ":ip_address": vm.ip_address,
                    ":updated_at": vm.updated_at.to_string(),
                    ":error_message": vm.error_message,
                },
            )?;
            if changed == 0 {
                return Err(StoreError::NoRecord(format!("VM {}", vm.id)));
            }
            if let Some(job) = job {
                jobs::update(transaction, &job)?;
            }
            if vm.phase == Phase::Failed {
                streams::release_unused(transaction, &vm.id)?;
            }
            Ok(())
        })
        .await
    }

    /// Removes a VM's record, lets its stream go, and removes its jobs, those of failed creates under its name included. None there is a success.
    pub async fn remove(&self, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.write(move |transaction| {
            transaction.execute(
                "DELETE FROM jobs
                 WHERE vm_id = ?1 OR vm_name = (SELECT name FROM vms WHERE id = ?1)",
                [&id],
            )?;
            transaction.execute("DELETE FROM vms WHERE id = ?1", [&id])?;
            streams::release(transaction, &id)
        })
        .await
    }

    /// Those of `ids` that this store issued.
    pub async fn issued(&self, ids: Vec<String>) -> Result<HashSet<String>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare("SELECT 1 FROM issued_ids WHERE id = ?1")?;
            let mut issued = HashSet::new();
            for id in ids {
                if statement.exists([&id])? {
                    issued.insert(id);
                }
            }
            Ok(issued)
        })
        .await
    }
}

pub(super) fn all(connection: &Connection) -> Result<Vec<VmRecord>, StoreError> {
    let mut statement = connection.prepare("SELECT * FROM vms")?;
    let mut records = Vec::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        records.push(record(row)?);
    }
    records.sort_by(|a, b| (a.vm.created_at, &a.vm.id).cmp(&(b.vm.created_at, &b.vm.id)));
    Ok(records)
}

/// Issues `wanted`, or the first free one of `wanted-2`, `wanted-3` and so on. A name that a VM has is not free: requestors
/// may name VMs like instance ids, and either has to mean one VM.
fn issue(transaction: &Transaction<'_>, wanted: &str) -> Result<String, StoreError> {
    let mut candidate = wanted.to_owned();
    for number in 2_u64.. {
        let named = transaction
            .query_row("SELECT 1 FROM vms WHERE name = ?1", [&candidate], |_| Ok(()))
            .optional()?;
        let fresh = named.is_none()
            && transaction
                .execute("INSERT OR IGNORE INTO issued_ids (id) VALUES (?1)", [&candidate])?
                == 1;
        if fresh {
            break;
        }
        candidate = format!("{wanted}-{number}");
    }
    Ok(candidate)
}

fn insert(transaction: &Transaction<'_>, record: &VmRecord) -> Result<(), StoreError> {
    let vm = &record.vm;
    transaction.execute(
        "INSERT INTO vms (id, name, backend, phase, cpu_cores, memory_gb, storage_gb, image, ssh_key, ssh_port, ip_address,
             created_at, updated_at, error_message, owner, owned_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        params![
            vm.id,
            vm.name,
            vm.backend,
            vm.phase.name(),
            vm.resources.cpu_cores,
            vm.resources.memory_gb,
            vm.resources.storage_gb,
            vm.image,
            record.ssh_key,
            vm.ssh_port,
            vm.ip_address,
            vm.created_at.to_string(),
            vm.updated_at.to_string(),
            vm.error_message,
            owner(vm.ownership),
            owned_by(vm.ownership),
        ],
    )?;
    Ok(())
}

fn record(row: &Row<'_>) -> Result<VmRecord, StoreError> {
    let phase: String = row.get("phase")?;
    let vm = Vm {
        id: row.get("id")?,
        name: row.get("name")?,
        backend: row.get("backend")?,
        phase: Phase::from_name(&phase)
            .ok_or_else(|| StoreError::BadRow(format!("the phase '{phase}' of a VM")))?,
        resources: Resources {
            cpu_cores: row.get("cpu_cores")?,
            memory_gb: row.get("memory_gb")?,
            storage_gb: row.get("storage_gb")?,
        },
        image: row.get("image")?,
        ownership: ownership(row)?,
        ssh_port: row.get("ssh_port")?,
        ip_address: row.get("ip_address")?,
        created_at: timestamp(row, "created_at")?,
        updated_at: timestamp(row, "updated_at")?,
        error_message: row.get("error_message")?,
        progress: None,
    };
    Ok(VmRecord { vm, ssh_key: row.get("ssh_key")? })
}

/// As `owner` keeps it.
pub(super) fn owner(ownership: Ownership) -> Option<String> {
    ownership.owner().map(|owner| owner.to_checksum(None))
}

/// As `owned_by` keeps it.
pub(super) fn owned_by(ownership: Ownership) -> Option<&'static str> {
    match ownership {
        Ownership::Nobody => None,
        Ownership::Payer(_) => Some("payment"),
        Ownership::Proven(_) => Some("signature"),
    }
}

/// From a row of a table that has both columns; where it has none yet, since the provider has not run for that long, nothing
/// belongs to anybody.
pub(super) fn ownership(row: &Row<'_>) -> Result<Ownership, StoreError> {
    if row.as_ref().column_index("owner").is_err() {
        return Ok(Ownership::Nobody);
    }
    let owner: Option<String> = row.get("owner")?;
    let owned_by: Option<String> = row.get("owned_by")?;
    match (owner, owned_by.as_deref()) {
        (None, None) => Ok(Ownership::Nobody),
        (Some(owner), Some("payment")) => Ok(Ownership::Payer(address(&owner)?)),
        (Some(owner), Some("signature")) => Ok(Ownership::Proven(address(&owner)?)),
        (owner, by) => Err(StoreError::BadRow(format!("the owner {owner:?}, known by {by:?}"))),
    }
}

pub(super) fn address(text: &str) -> Result<Address, StoreError> {
    crate::owners::address(text).ok_or_else(|| StoreError::BadRow(format!("the address '{text}'")))
}

pub(super) fn timestamp(row: &Row<'_>, column: &str) -> Result<Timestamp, StoreError> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error| StoreError::BadRow(format!("the time '{text}' ({error})")))
}
