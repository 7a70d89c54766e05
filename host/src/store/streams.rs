//! The table of payment streams. A stream is bound in the same transaction that admits its machine, and let go in the one that
//! ends the machine, so that no moment of a crash leaves one without the other.

use alloy::primitives::{Address, U256};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params, params};

use super::{Store, StoreError, vms::timestamp};
use crate::{
    payments::streams::{PaymentState, Stream, StreamKey, StreamReading, Suspension},
    plugins::payment_verifier::{Payment, Standing},
};

impl Store {
    /// Every stream that was ever bound, oldest first.
    ///
    /// # Errors
    /// See [`StoreError`]; so for every call here.
    pub async fn streams(&self) -> Result<Vec<Stream>, StoreError> {
        self.read(all).await
    }

    /// The stream with this key, if a machine was ever bound to it.
    pub async fn stream(&self, key: StreamKey) -> Result<Option<Stream>, StoreError> {
        self.read(move |connection| one(connection, &key)).await
    }

    /// The stream that pays for the machine with this instance id. There is one at a time.
    pub async fn stream_of_vm(&self, vm_id: &str) -> Result<Option<Stream>, StoreError> {
        let vm_id = vm_id.to_owned();
        self.read(move |connection| {
            let mut statement = connection
                .prepare("SELECT * FROM streams WHERE vm_id = ?1 AND released_at IS NULL")?;
            let mut rows = statement.query([vm_id])?;
            rows.next()?.map(stream).transpose()
        })
        .await
    }

    /// Binds another stream to a machine that there is; the one that paid for it before is let go.
    pub async fn rebind_stream(&self, stream: Stream) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let known: Option<i64> = transaction
                .query_row("SELECT 1 FROM vms WHERE id = ?1", [&stream.vm_id], |row| row.get(0))
                .optional()?;
            if known.is_none() {
                return Err(StoreError::NoRecord(format!("VM {}", stream.vm_id)));
            }
            release(transaction, &stream.vm_id)?;
            bind(transaction, &stream)
        })
        .await
    }

    /// Writes down what was read of streams, and what followed. Whose machine they are, and whether it is gone, is not changed.
    pub async fn save_streams(&self, streams: Vec<Stream>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            for stream in &streams {
                update(transaction, stream)?;
            }
            Ok(())
        })
        .await
    }

    /// Writes down a stream as it was read just now, and nothing else of it: what others keep of it stays as it is by then.
    pub async fn save_reading(
        &self,
        key: StreamKey,
        reading: StreamReading,
    ) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let Some(mut stream) = one(transaction, &key)? else {
                return Err(StoreError::NoRecord(format!("the stream {}", key.reference)));
            };
            stream.payment = reading.payment;
            stream.read_block = reading.block;
            stream.read_block_time = reading.block_time;
            stream.read_at = reading.at;
            update(transaction, &stream)
        })
        .await
    }

    /// Nothing more comes of a stream whose machine is gone.
    pub async fn settle_stream(&self, key: StreamKey) -> Result<(), StoreError> {
        self.write(move |transaction| {
            transaction.execute(
                "UPDATE streams SET settled = 1 WHERE contract = ?1 AND reference = ?2 AND released_at IS NOT NULL",
                params![key.contract.to_checksum(None), key.reference],
            )?;
            Ok(())
        })
        .await
    }
}

fn one(connection: &Connection, key: &StreamKey) -> Result<Option<Stream>, StoreError> {
    let mut statement =
        connection.prepare("SELECT * FROM streams WHERE contract = ?1 AND reference = ?2")?;
    let mut rows = statement.query([key.contract.to_checksum(None), key.reference.clone()])?;
    rows.next()?.map(stream).transpose()
}

/// Binds a stream to a machine that is being admitted.
pub(super) fn bind(transaction: &Transaction<'_>, stream: &Stream) -> Result<(), StoreError> {
    let contract = stream.key.contract.to_checksum(None);
    let taken: Option<String> = transaction
        .query_row(
            "SELECT vm_name FROM streams WHERE contract = ?1 AND reference = ?2",
            params![contract, stream.key.reference],
            |row| row.get(0),
        )
        .optional()?;
    if taken.is_some() {
        return Err(StoreError::StreamTaken { reference: stream.key.reference.clone() });
    }
    transaction.execute(
        "INSERT INTO streams (contract, reference, verifier, chain, vm_id, vm_name, bound_at, standing, token, payer, payee,
             rate_wei, start_time, stop_time, deposit_wei, withdrawn_wei, read_block, read_block_time, read_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'open', '', '', '', '', '', '', '', '', 0, 0, '')",
        params![
            contract,
            stream.key.reference,
            stream.verifier,
            stream.chain,
            stream.vm_id,
            stream.vm_name,
            stream.bound_at.to_string(),
        ],
    )?;
    update(transaction, stream)
}

/// Lets go of the streams of a machine that was never made: its requestor may use them again. One that something was collected
/// of stays with it.
pub(super) fn release_unused(transaction: &Transaction<'_>, vm_id: &str) -> Result<(), StoreError> {
    transaction.execute(
        "DELETE FROM streams WHERE vm_id = ?1 AND NOT EXISTS
             (SELECT 1 FROM payouts WHERE payouts.contract = streams.contract AND payouts.reference = streams.reference)",
        [vm_id],
    )?;
    release(transaction, vm_id)
}

/// The machine of these streams is gone.
pub(super) fn release(transaction: &Transaction<'_>, vm_id: &str) -> Result<(), StoreError> {
    transaction.execute(
        "UPDATE streams SET released_at = ?2 WHERE vm_id = ?1 AND released_at IS NULL",
        params![vm_id, crate::vms::model::now().to_string()],
    )?;
    Ok(())
}

fn update(transaction: &Transaction<'_>, stream: &Stream) -> Result<(), StoreError> {
    let Payment {
        standing,
        token,
        payer,
        payee,
        rate_wei_per_second,
        start_time,
        stop_time,
        deposit_wei,
        withdrawn_wei,
    } = &stream.payment;
    transaction.execute(
        "UPDATE streams SET standing = :standing, token = :token, payer = :payer, payee = :payee, rate_wei = :rate_wei,
             start_time = :start_time, stop_time = :stop_time, deposit_wei = :deposit_wei, withdrawn_wei = :withdrawn_wei,
             read_block = :read_block, read_block_time = :read_block_time, read_at = :read_at,
             suspended_at = :suspended_at, suspended_for = :suspended_for, settled = max(settled, :settled)
         WHERE contract = :contract AND reference = :reference",
        named_params! {
            ":contract": stream.key.contract.to_checksum(None),
            ":reference": stream.key.reference,
            ":standing": standing_name(*standing),
            ":token": token.to_checksum(None),
            ":payer": payer.to_checksum(None),
            ":payee": payee.to_checksum(None),
            ":rate_wei": rate_wei_per_second.to_string(),
            ":start_time": start_time.to_string(),
            ":stop_time": stop_time.to_string(),
            ":deposit_wei": deposit_wei.to_string(),
            ":withdrawn_wei": withdrawn_wei.to_string(),
            ":read_block": signed(stream.read_block),
            ":read_block_time": signed(stream.read_block_time),
            ":read_at": stream.read_at.to_string(),
            ":suspended_at": stream.suspended.map(|suspended| suspended.at.to_string()),
            ":suspended_for": stream.suspended.map(|suspended| suspended.state.name()),
            ":settled": stream.settled,
        },
    )?;
    Ok(())
}

/// As SQLite keeps it. No block and no time of one passes what fits.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn all(connection: &Connection) -> Result<Vec<Stream>, StoreError> {
    let mut statement = connection.prepare("SELECT * FROM streams")?;
    let mut streams = Vec::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        streams.push(stream(row)?);
    }
    streams.sort_by(|a, b| (a.bound_at, &a.key).cmp(&(b.bound_at, &b.key)));
    Ok(streams)
}

fn stream(row: &Row<'_>) -> Result<Stream, StoreError> {
    let suspended = match row.get::<_, Option<String>>("suspended_for")? {
        Some(name) => Some(Suspension {
            at: timestamp(row, "suspended_at")?,
            state: PaymentState::ALL
                .into_iter()
                .find(|state| state.name() == name)
                .ok_or_else(|| StoreError::BadRow(format!("the state '{name}' of a stream")))?,
        }),
        None => None,
    };
    Ok(Stream {
        key: StreamKey { contract: address(row, "contract")?, reference: row.get("reference")? },
        verifier: row.get("verifier")?,
        chain: row.get("chain")?,
        vm_id: row.get("vm_id")?,
        vm_name: row.get("vm_name")?,
        bound_at: timestamp(row, "bound_at")?,
        payment: Payment {
            standing: standing(&row.get::<_, String>("standing")?)?,
            token: address(row, "token")?,
            payer: address(row, "payer")?,
            payee: address(row, "payee")?,
            rate_wei_per_second: quantity(row, "rate_wei")?,
            start_time: quantity(row, "start_time")?,
            stop_time: quantity(row, "stop_time")?,
            deposit_wei: quantity(row, "deposit_wei")?,
            withdrawn_wei: quantity(row, "withdrawn_wei")?,
        },
        read_block: row.get::<_, i64>("read_block")?.unsigned_abs(),
        read_block_time: row.get::<_, i64>("read_block_time")?.unsigned_abs(),
        read_at: timestamp(row, "read_at")?,
        suspended,
        released_at: optional_timestamp(row, "released_at")?,
        settled: row.get("settled")?,
    })
}

const STANDINGS: [(Standing, &str); 3] =
    [(Standing::Open, "open"), (Standing::Halted, "halted"), (Standing::Closed, "closed")];

fn standing_name(standing: Standing) -> &'static str {
    match standing {
        Standing::Open => STANDINGS[0].1,
        Standing::Halted => STANDINGS[1].1,
        Standing::Closed => STANDINGS[2].1,
    }
}

fn standing(name: &str) -> Result<Standing, StoreError> {
    let found = STANDINGS.into_iter().find(|(_, known)| *known == name);
    found
        .map(|(standing, _)| standing)
        .ok_or_else(|| StoreError::BadRow(format!("the standing '{name}' of a stream")))
}

pub(super) fn address(row: &Row<'_>, column: &str) -> Result<Address, StoreError> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error| StoreError::BadRow(format!("the address '{text}' ({error})")))
}

pub(super) fn quantity(row: &Row<'_>, column: &str) -> Result<U256, StoreError> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error| StoreError::BadRow(format!("the amount '{text}' ({error})")))
}

pub(super) fn optional_timestamp(
    row: &Row<'_>,
    column: &str,
) -> Result<Option<Timestamp>, StoreError> {
    match row.get::<_, Option<String>>(column)? {
        Some(_) => timestamp(row, column).map(Some),
        None => Ok(None),
    }
}
