-- What version the schema has, and of which version a program must at least be to use it.
CREATE SCHEMA IF NOT EXISTS sse_app;

CREATE TABLE sse_app.schema (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL,
    oldest integer NOT NULL
);

INSERT INTO sse_app.schema (version, oldest) VALUES (1, 1);
