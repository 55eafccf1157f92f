-- What version the schema has, and of which version a program must at least be to use it.
CREATE SCHEMA IF NOT EXISTS sse_app;

CREATE TABLE sse_app.schema (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL,
    oldest integer NOT NULL
);

INSERT INTO sse_app.schema (version, oldest) VALUES (1, 1);

-- What `sse-app eventlog copy` has brought here from a log on SQLite: its epoch, up to which event, and when.
-- Until it has finished there is no row in sse_app.log, and no server starts.
CREATE TABLE sse_app.copied (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    source text NOT NULL,
    epoch text NOT NULL,
    seq bigint NOT NULL DEFAULT 0,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished boolean NOT NULL DEFAULT false
);

-- Have the transaction wait for the disk at its commit, also where synchronous_commit is off.
CREATE FUNCTION sse_app.wait_for_disk() RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;
END
$$;
