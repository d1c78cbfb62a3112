-- Format 3: what is known of secrets outlives a restart.

-- How the secrets of sources have been used, by their names.
CREATE TABLE secret_use (
    source    TEXT NOT NULL,
    secret    TEXT NOT NULL,
    since     INTEGER NOT NULL, -- when the count began
    uses      INTEGER NOT NULL,
    last_used INTEGER,          -- null while there has been none
    PRIMARY KEY (source, secret)
) WITHOUT ROWID, STRICT;
