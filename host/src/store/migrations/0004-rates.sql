-- The last good price of each token, for the time when nobody can be asked.
CREATE TABLE rates (
    token  TEXT NOT NULL PRIMARY KEY, -- such as glm
    usd    TEXT NOT NULL,             -- a decimal, exact
    at     TEXT NOT NULL,             -- when it was last said
    source TEXT NOT NULL              -- by whom
) STRICT, WITHOUT ROWID;
