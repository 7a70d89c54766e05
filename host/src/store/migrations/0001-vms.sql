-- The VMs there are: one row from admission until everything of the VM is gone.
-- A row that has an ssh_port holds that port and its resources; there is no other book of either.
CREATE TABLE vms (
    id            TEXT    NOT NULL PRIMARY KEY, -- instance id, golem-NAME-YYYYmmdd-HHMMSS[-N]
    name          TEXT    NOT NULL UNIQUE,      -- the requestor's name for it
    backend       TEXT    NOT NULL,             -- made it, and owns it for its whole life
    phase         TEXT    NOT NULL
                  CHECK (phase IN ('creating', 'running', 'stopping', 'stopped', 'starting', 'deleting', 'failed')),
    cpu_cores     INTEGER NOT NULL CHECK (cpu_cores > 0),
    memory_gb     INTEGER NOT NULL CHECK (memory_gb > 0),
    storage_gb    INTEGER NOT NULL CHECK (storage_gb > 0),
    image         TEXT    NOT NULL,
    ssh_key       TEXT,                         -- given with the create; needed to take up one that was interrupted
    ssh_port      INTEGER UNIQUE CHECK (ssh_port BETWEEN 1 AND 65535),
    ip_address    TEXT,
    created_at    TEXT    NOT NULL,             -- RFC 3339, as all times here
    updated_at    TEXT    NOT NULL,
    error_message TEXT,
    -- Only what failed to be made, and was cleared away, lives on without a port.
    CHECK (ssh_port IS NOT NULL OR phase IN ('failed', 'deleting'))
) STRICT, WITHOUT ROWID;

-- Every instance id ever issued. Makes ids unique whatever the clock does, and tells machines of this provider from those
-- of another one on the same backend: only what is in here may be cleared away as left over.
CREATE TABLE issued_ids (
    id TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;
