-- Creates, as those who asked for them follow them. Kept for a day after they ended; removed with a deleted VM of their name.
-- No foreign key: the job of a failed create outlives the VM's row when a new VM takes the name.
CREATE TABLE jobs (
    id         TEXT NOT NULL PRIMARY KEY, -- UUID
    vm_id      TEXT NOT NULL,             -- instance id
    vm_name    TEXT NOT NULL,
    status     TEXT NOT NULL CHECK (status IN ('creating', 'ready', 'failed')),
    error      TEXT,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX jobs_vm_id ON jobs (vm_id);
