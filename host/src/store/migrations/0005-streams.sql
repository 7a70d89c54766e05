-- Payment streams that machines were bound to. A row stays when its machine is gone: what is owed is still to be collected, and
-- no stream buys a second machine. Amounts and contracts' times are decimal text, since they pass 64 bits.
CREATE TABLE streams (
    contract        TEXT    NOT NULL,
    reference       TEXT    NOT NULL,
    verifier        TEXT    NOT NULL,  -- the plugin that reads it
    chain           TEXT    NOT NULL,
    vm_id           TEXT    NOT NULL,  -- instance id
    vm_name         TEXT    NOT NULL,
    bound_at        TEXT    NOT NULL,
    standing        TEXT    NOT NULL CHECK (standing IN ('open', 'halted', 'closed')),
    token           TEXT    NOT NULL,
    payer           TEXT    NOT NULL,
    payee           TEXT    NOT NULL,
    rate_wei        TEXT    NOT NULL,  -- a second
    start_time      TEXT    NOT NULL,
    stop_time       TEXT    NOT NULL,
    deposit_wei     TEXT    NOT NULL,
    withdrawn_wei   TEXT    NOT NULL,
    read_block      INTEGER NOT NULL,  -- the block that all this stood at
    read_block_time INTEGER NOT NULL,
    read_at         TEXT    NOT NULL,
    suspended_at    TEXT,              -- its machine was stopped for the want of money
    suspended_for   TEXT CHECK ((suspended_at IS NULL) = (suspended_for IS NULL)),
    released_at     TEXT,              -- its machine was deleted
    settled         INTEGER NOT NULL DEFAULT 0 CHECK (settled IN (0, 1)),
    PRIMARY KEY (contract, reference)
) STRICT, WITHOUT ROWID;

CREATE INDEX streams_vm_id ON streams (vm_id);

-- Transactions that collect money: written before they are sent.
CREATE TABLE payouts (
    id           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    contract     TEXT    NOT NULL,
    reference    TEXT    NOT NULL,
    chain        TEXT    NOT NULL,
    kind         TEXT    NOT NULL CHECK (kind IN ('withdraw', 'terminate')),
    state        TEXT    NOT NULL CHECK (state IN ('planned', 'mined', 'failed')),
    planned_at   TEXT    NOT NULL,
    updated_at   TEXT    NOT NULL,
    expected_wei TEXT    NOT NULL,
    amount_wei   TEXT,
    tx_hash      TEXT,
    gas_wei      TEXT,
    error        TEXT,
    FOREIGN KEY (contract, reference) REFERENCES streams (contract, reference)
) STRICT;

CREATE INDEX payouts_stream ON payouts (contract, reference);

-- The one transaction of a chain that is under way, as it was signed: written before it is sent, so that after a crash it is sent
-- again or replaced, and never doubled.
CREATE TABLE hanging_transactions (
    chain TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL                -- JSON, of `chains`
) STRICT, WITHOUT ROWID;
