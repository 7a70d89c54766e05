//! The table of jobs.

use rusqlite::{Row, Transaction, params};
use uuid::Uuid;

use super::{
    Store, StoreError,
    vms::{owned_by, owner, ownership, timestamp},
};
use crate::vms::model::{Job, JobStatus};

/// A job and the VM it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRecord {
    pub job: Job,
    /// The instance id; the job itself names the VM as its requestor does.
    pub vm_id: String,
}

impl Store {
    /// All jobs that are kept.
    ///
    /// # Errors
    /// See [`StoreError`]; so for every call here.
    pub async fn jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare("SELECT * FROM jobs")?;
            let mut records = Vec::new();
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                records.push(record(row)?);
            }
            Ok(records)
        })
        .await
    }

    /// Writes down what became of a job whose VM has no record any more.
    pub async fn save_job(&self, job: JobRecord) -> Result<(), StoreError> {
        self.write(move |transaction| update(transaction, &job)).await
    }

    /// Forgets jobs.
    pub async fn remove_jobs(&self, ids: Vec<Uuid>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            for id in ids {
                transaction.execute("DELETE FROM jobs WHERE id = ?1", [id.to_string()])?;
            }
            Ok(())
        })
        .await
    }
}

pub(super) fn insert(transaction: &Transaction<'_>, record: &JobRecord) -> Result<(), StoreError> {
    let job = &record.job;
    transaction.execute(
        "INSERT INTO jobs (id, vm_id, vm_name, status, error, created_at, updated_at, owner, owned_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            job.id.to_string(),
            record.vm_id,
            job.vm_name,
            job.status.as_str(),
            job.error,
            job.created_at.to_string(),
            job.updated_at.to_string(),
            owner(job.ownership),
            owned_by(job.ownership),
        ],
    )?;
    Ok(())
}

/// A job that is not kept any more is none to update.
pub(super) fn update(transaction: &Transaction<'_>, record: &JobRecord) -> Result<(), StoreError> {
    let job = &record.job;
    transaction.execute(
        "UPDATE jobs SET status = ?2, error = ?3, updated_at = ?4 WHERE id = ?1",
        params![job.id.to_string(), job.status.as_str(), job.error, job.updated_at.to_string()],
    )?;
    Ok(())
}

fn record(row: &Row<'_>) -> Result<JobRecord, StoreError> {
    let id: String = row.get("id")?;
    let status: String = row.get("status")?;
    let job = Job {
        id: Uuid::parse_str(&id)
            .map_err(|error| StoreError::BadRow(format!("the job '{id}' ({error})")))?,
        vm_name: row.get("vm_name")?,
        ownership: ownership(row)?,
        status: JobStatus::from_name(&status)
            .ok_or_else(|| StoreError::BadRow(format!("the status '{status}' of a job")))?,
        error: row.get("error")?,
        created_at: timestamp(row, "created_at")?,
        updated_at: timestamp(row, "updated_at")?,
    };
    Ok(JobRecord { job, vm_id: row.get("vm_id")? })
}
