-- Whom a VM belongs to: an address, known by the signature of the request that made the VM, or only as who pays for it.
ALTER TABLE vms ADD COLUMN owner TEXT; -- 0x and 40 hex digits, with the checksum of EIP-55
ALTER TABLE vms ADD COLUMN owned_by TEXT
    CHECK (owned_by IN ('signature', 'payment'))
    CHECK ((owner IS NULL) = (owned_by IS NULL));

-- The same for the job that makes it, which may outlive the VM's row.
ALTER TABLE jobs ADD COLUMN owner TEXT;
ALTER TABLE jobs ADD COLUMN owned_by TEXT
    CHECK (owned_by IN ('signature', 'payment'))
    CHECK ((owner IS NULL) = (owned_by IS NULL));

-- Nonces of signed requests that have been answered, for as long as the signature would count.
CREATE TABLE used_nonces (
    address   TEXT    NOT NULL,
    nonce     TEXT    NOT NULL,
    timestamp INTEGER NOT NULL, -- the signature's, in seconds since 1970
    PRIMARY KEY (address, nonce)
) STRICT, WITHOUT ROWID;

CREATE INDEX used_nonces_timestamp ON used_nonces (timestamp);
