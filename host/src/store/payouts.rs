//! The table of transactions that collect money. A row is there before its transaction is signed, and stays.

use jiff::Timestamp;
use rusqlite::{Connection, Row, named_params, params};

use super::{
    Store, StoreError,
    streams::{address, quantity},
    vms::timestamp,
};
use crate::payments::streams::{
    NewPayout, Payout, PayoutKind, PayoutResult, PayoutState, StreamKey,
};

impl Store {
    /// Every transaction that was ever planned, oldest first.
    ///
    /// # Errors
    /// See [`StoreError`]; so for every call here.
    pub async fn payouts(&self) -> Result<Vec<Payout>, StoreError> {
        self.read(all).await
    }

    /// Writes down that money is to be collected, before anything is sent.
    pub async fn plan_payout(&self, new: NewPayout) -> Result<Payout, StoreError> {
        self.write(move |transaction| {
            let now = new.planned_at.to_string();
            transaction.execute(
                "INSERT INTO payouts (contract, reference, chain, kind, state, planned_at, updated_at, expected_wei)
                 VALUES (?1, ?2, ?3, ?4, 'planned', ?5, ?5, ?6)",
                params![
                    new.key.contract.to_checksum(None),
                    new.key.reference,
                    new.chain,
                    kind_name(new.kind),
                    now,
                    new.expected_wei.to_string(),
                ],
            )?;
            let id = transaction.last_insert_rowid();
            let NewPayout { key, chain, kind, planned_at, expected_wei } = new;
            Ok(Payout {
                id,
                key,
                chain,
                kind,
                state: PayoutState::Planned,
                planned_at,
                updated_at: planned_at,
                expected_wei,
                amount_wei: None,
                transaction: None,
                gas_wei: None,
                error: None,
            })
        })
        .await
    }

    /// Writes down what is known of a transaction by now.
    pub async fn save_payout(
        &self,
        id: i64,
        result: PayoutResult,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let changed = transaction.execute(
                "UPDATE payouts SET state = :state, updated_at = :now, amount_wei = :amount, tx_hash = :hash,
                     gas_wei = :gas, error = :error
                 WHERE id = :id",
                named_params! {
                    ":id": id,
                    ":state": state_name(result.state),
                    ":now": now.to_string(),
                    ":amount": result.amount_wei.map(|wei| wei.to_string()),
                    ":hash": result.transaction,
                    ":gas": result.gas_wei.map(|wei| wei.to_string()),
                    ":error": result.error,
                },
            )?;
            match changed {
                0 => Err(StoreError::NoRecord(format!("the withdrawal {id}"))),
                _ => Ok(()),
            }
        })
        .await
    }
}

pub(super) fn all(connection: &Connection) -> Result<Vec<Payout>, StoreError> {
    let mut statement = connection.prepare("SELECT * FROM payouts ORDER BY id")?;
    let mut payouts = Vec::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        payouts.push(payout(row)?);
    }
    Ok(payouts)
}

fn payout(row: &Row<'_>) -> Result<Payout, StoreError> {
    let (kind, state): (String, String) = (row.get("kind")?, row.get("state")?);
    let optional = |column: &str| match row.get::<_, Option<String>>(column)? {
        Some(_) => quantity(row, column).map(Some),
        None => Ok(None),
    };
    Ok(Payout {
        id: row.get("id")?,
        key: StreamKey { contract: address(row, "contract")?, reference: row.get("reference")? },
        chain: row.get("chain")?,
        kind: [PayoutKind::Withdraw, PayoutKind::Terminate]
            .into_iter()
            .find(|known| kind_name(*known) == kind)
            .ok_or_else(|| StoreError::BadRow(format!("the withdrawal's kind '{kind}'")))?,
        state: [PayoutState::Planned, PayoutState::Mined, PayoutState::Failed]
            .into_iter()
            .find(|known| state_name(*known) == state)
            .ok_or_else(|| StoreError::BadRow(format!("the withdrawal's state '{state}'")))?,
        planned_at: timestamp(row, "planned_at")?,
        updated_at: timestamp(row, "updated_at")?,
        expected_wei: quantity(row, "expected_wei")?,
        amount_wei: optional("amount_wei")?,
        transaction: row.get("tx_hash")?,
        gas_wei: optional("gas_wei")?,
        error: row.get("error")?,
    })
}

fn kind_name(kind: PayoutKind) -> &'static str {
    match kind {
        PayoutKind::Withdraw => "withdraw",
        PayoutKind::Terminate => "terminate",
    }
}

fn state_name(state: PayoutState) -> &'static str {
    match state {
        PayoutState::Planned => "planned",
        PayoutState::Mined => "mined",
        PayoutState::Failed => "failed",
    }
}
