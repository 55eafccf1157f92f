-- A stream that begins with the last events of its channels may ask for some event types only: those count then.

-- As before, and with the types that count as the last events; null: all do. Of a channel that has none of them the
-- stream has what comes later.
CREATE FUNCTION sse_app.beginning(
    texts text[], last bigint, since double precision, ago double precision, types text[],
    OUT name text, OUT floor bigint, OUT first bigint
) RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    log sse_app.log;
    before bigint := 0;
BEGIN
    SELECT * INTO STRICT log FROM sse_app.log;
    name := log.epoch;
    floor := log.seq;
    first := log.forgotten;
    RETURN NEXT;
    IF since IS NOT NULL OR ago IS NOT NULL THEN
        before := sse_app.dated_before(
            log, log.erased, greatest(since, sse_app.now_of(log.at, log.wall) - ago));
    END IF;
    RETURN QUERY
    SELECT f.name, f.floor, CASE WHEN f.last_seq > f.floor THEN
        (SELECT e.seq FROM sse_app.events AS e WHERE e.channel = f.id AND e.seq > f.floor ORDER BY e.seq LIMIT 1) END
    FROM (
        SELECT s.name, s.id, s.last_seq, greatest(
            s.trimmed,
            CASE WHEN types IS NULL AND s.published - last > s.removed THEN
                (SELECT e.seq FROM sse_app.events AS e WHERE e.channel = s.id AND e.n = s.published - last) END,
            CASE WHEN types IS NOT NULL AND last IS NOT NULL THEN
                coalesce((SELECT min(found.seq) - 1 FROM (
                    SELECT e.seq FROM sse_app.events AS e
                    WHERE e.channel = s.id AND e.seq > s.trimmed AND e.type = ANY (types)
                    ORDER BY e.seq DESC LIMIT last) AS found), s.last_seq) END,
            CASE WHEN before >= s.last_seq THEN s.last_seq WHEN before > s.trimmed THEN
                (SELECT e.seq FROM sse_app.events AS e
                WHERE e.channel = s.id AND e.seq > s.trimmed AND e.seq <= before ORDER BY e.seq DESC LIMIT 1) END
            ) AS floor
        FROM sse_app.selected(log, texts, -1, '{}') AS s WHERE s.id IS NOT NULL OFFSET 0
    ) AS f;
END
$$;

-- As programs of before ask, which may run beside newer ones.
CREATE OR REPLACE FUNCTION sse_app.beginning(
    texts text[], last bigint, since double precision, ago double precision,
    OUT name text, OUT floor bigint, OUT first bigint
) RETURNS SETOF record
LANGUAGE sql STABLE AS $$
    SELECT b.name, b.floor, b.first FROM sse_app.beginning(texts, last, since, ago, NULL) AS b
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA sse_app FROM PUBLIC;
