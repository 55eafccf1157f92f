-- Reading the past of channels, by their names and by patterns of them.
--
-- Each function reads all at one moment. Their plans are made once in a session, and joins and scans are forbidden that
-- are good only while tables are small: so they stay right while tables grow.

-- Return where in the order of their names the channels are that patterns cover; all there that are of an expression.
CREATE FUNCTION sse_app.name_ranges(
    texts text[], OUT pattern text, OUT low text, OUT high text, OUT expression text
) RETURNS SETOF record
LANGUAGE sql IMMUTABLE ROWS 2 SET standard_conforming_strings = on AS $$
    WITH patterns AS (
        SELECT t AS pattern, substring(t FROM '^[^*]*') AS prefix, t ~ '(^|\.)\*\*$' AS is_open
        FROM unnest(texts) AS t WHERE strpos(t, '*') > 0
    )
    SELECT pattern, prefix, prefix || '~', -- a name has only characters that come before this one
        CASE WHEN pattern <> prefix || '**' THEN
            '^' || replace(replace(CASE WHEN is_open THEN left(pattern, -3) ELSE pattern END, '.', '\.'), '*', '[^.]+')
            || CASE WHEN is_open THEN '(\.|$)' ELSE '$' END END
    FROM patterns
    UNION ALL -- of a.** also a itself
    SELECT pattern, left(prefix, -1), left(prefix, -1) || '!', NULL
    FROM patterns WHERE prefix <> '' AND pattern = prefix || '**'
$$;

-- Return channels: each that is named, also where it is not there, and those that patterns cover and that have events
-- after a position. None of the server's own is covered.
--   texts: names and patterns.
--   floors: what the events that are asked for follow, by names; by patterns for the channels of theirs that have none.
-- trimmed is the last event that is no longer kept, and of a channel that is not there that of any that was forgotten.
CREATE FUNCTION sse_app.selected(
    log sse_app.log, texts text[], after bigint, floors jsonb,
    OUT name text, OUT id integer, OUT published bigint, OUT removed bigint, OUT last_seq bigint, OUT trimmed bigint,
    OUT floor bigint
) RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH expired AS MATERIALIZED (
        SELECT * FROM sse_app.expired(log)
    ), found AS (
        SELECT w.name, there.channel, coalesce((floors ->> w.name)::bigint, 0) AS floor
        FROM (SELECT DISTINCT t FROM unnest(texts) AS t WHERE strpos(t, '*') = 0) AS w (name)
        LEFT JOIN LATERAL (SELECT c AS channel FROM sse_app.channels AS c WHERE c.name = w.name OFFSET 0) AS there
            ON true
        UNION ALL (
            SELECT DISTINCT ON (covered.id) covered.name, covered.channel,
                coalesce((floors ->> covered.name)::bigint, r.floor)
            FROM (
                SELECT low, high, expression, coalesce((floors ->> pattern)::bigint, 0) AS floor
                FROM sse_app.name_ranges(texts)
            ) AS r
            CROSS JOIN LATERAL (
                SELECT c.id, c.name, c AS channel FROM sse_app.channels AS c
                WHERE c.name >= r.low AND c.name < r.high AND c.last_seq > after
                    AND (r.expression IS NULL OR c.name ~ r.expression)
                    AND split_part(c.name, '.', 1) <> 'sse_app' AND c.name <> ALL (texts)
                OFFSET 0
            ) AS covered
            ORDER BY covered.id, r.floor
        )
    )
    SELECT f.name, (f.channel).id, (f.channel).published, (f.channel).removed, coalesce((f.channel).last_seq, 0),
        CASE WHEN (f.channel).id IS NULL THEN log.forgotten ELSE gone.seq END, f.floor
    FROM found AS f LEFT JOIN expired AS x ON x.age = (f.channel).age
    CROSS JOIN LATERAL sse_app.trimmed_of(f.channel, x.erased, x.until) AS gone (seq);
END
$$;

-- Return which channels of texts have lost events after a position, each with the last one that is no longer kept; and
-- first the log's epoch and head, and the last event of any channel that was forgotten.
CREATE FUNCTION sse_app.lost_after(texts text[], after bigint, OUT name text, OUT trimmed bigint, OUT forgotten bigint)
RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 3 AS $$
#variable_conflict use_column
DECLARE
    log sse_app.log;
BEGIN
    SELECT * INTO STRICT log FROM sse_app.log;
    name := log.epoch;
    trimmed := log.seq;
    forgotten := log.forgotten;
    RETURN NEXT;
    RETURN QUERY SELECT s.name, s.trimmed, NULL::bigint
        FROM sse_app.selected(log, texts, after, '{}') AS s WHERE s.trimmed > after;
END
$$;

-- Return for a stream that begins in the past what the events of each channel that there is follow, and the first event
-- after that (null: there is none); and before that the log's epoch and head, and the last event of any channel that was
-- forgotten.
--   last: how many events of each channel it begins with; null for all that are kept.
--   since, ago: of what date the events are or later, in seconds since the epoch or ago; null for all that are kept.
CREATE FUNCTION sse_app.beginning(
    texts text[], last bigint, since double precision, ago double precision,
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
            CASE WHEN s.published - last > s.removed THEN
                (SELECT e.seq FROM sse_app.events AS e WHERE e.channel = s.id AND e.n = s.published - last) END,
            CASE WHEN before >= s.last_seq THEN s.last_seq WHEN before > s.trimmed THEN
                (SELECT e.seq FROM sse_app.events AS e
                WHERE e.channel = s.id AND e.seq > s.trimmed AND e.seq <= before ORDER BY e.seq DESC LIMIT 1) END
            ) AS floor
        FROM sse_app.selected(log, texts, -1, '{}') AS s WHERE s.id IS NOT NULL OFFSET 0
    ) AS f;
END
$$;

-- Return the channels whose last event says that it is the last one, and is kept; each with its seq.
CREATE FUNCTION sse_app.ended(OUT name text, OUT seq bigint) RETURNS SETOF record
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    log sse_app.log;
BEGIN
    SELECT * INTO STRICT log FROM sse_app.log;
    RETURN QUERY
    SELECT c.name, c.last_seq FROM sse_app.channels AS c
        CROSS JOIN LATERAL (SELECT e.at, e.flags FROM sse_app.events AS e WHERE e.seq = c.last_seq OFFSET 0) AS e
        WHERE (e.flags & 2) <> 0 AND e.at >= sse_app.now_of(log.at, log.wall) - c.age;
END
$$;

-- Return the first events of many channels by a look at all events that follow a position, up to one more than most;
-- and how far was looked, or null where that was at all of them.
--   ids, bounds: the channels, and what the events of each follow.
--   budget: at how many events it is looked.
-- The joins here are of what is known only when it is called, so that no plan could be good that goes by numbers.
CREATE FUNCTION sse_app.scanned(
    ids integer[], bounds bigint[], after bigint, until bigint, most integer, budget integer,
    OUT seqs bigint[], OUT looked bigint
)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_nestloop = off SET enable_mergejoin = off
SET enable_hashjoin = on SET jit = off AS $$
#variable_conflict use_column
BEGIN
    WITH next AS MATERIALIZED (
        SELECT e.seq, e.channel FROM sse_app.events AS e WHERE e.seq > after AND e.seq <= until
        ORDER BY e.seq LIMIT budget
    )
    SELECT ARRAY(
            SELECT n.seq FROM next AS n JOIN unnest(ids, bounds) AS c (id, bound) ON c.id = n.channel
            WHERE n.seq > c.bound ORDER BY n.seq LIMIT most + 1),
        (SELECT CASE WHEN count(*) = budget THEN max(n.seq) END FROM next AS n)
    INTO seqs, looked;
END
$$;

-- Return a page of the past of channels: its events, each with whether more of those that were found follow it; and first
-- one row without an event that says whether events after the position are no longer kept (gap), how far was looked where
-- that was not to the end (looked), and the log's epoch and head in the places of name and seq.
--   texts, floors: see sse_app.selected.
--   most: how many events are returned at the most.
--   bytes: no further event comes once the data of those before it is so long.
--   budget: at how many events of all channels it is looked at the most.
CREATE FUNCTION sse_app.page(
    texts text[], floors jsonb, after bigint, until bigint, most integer, bytes bigint, budget integer,
    newest_first boolean,
    OUT seq bigint, OUT name text, OUT type text, OUT data bytea, OUT retry integer, OUT flags smallint,
    OUT more boolean, OUT gap boolean, OUT looked bigint
) RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    log sse_app.log;
    ids integer[];
    bounds bigint[];
    names text[];
    oldest bigint;                      -- no event before it is among the last ones
    lowest bigint;                      -- from here on there are events of the channels, and up to there
    highest bigint;
    kept numeric;                       -- how many they may be, and how many are read where each channel's are merged
    merged numeric;
    seqs bigint[];
BEGIN
    SELECT * INTO STRICT log FROM sse_app.log;
    seq := log.seq;
    name := log.epoch;
    WITH all_selected AS MATERIALIZED (
        SELECT s.name, s.id, s.last_seq, s.trimmed, greatest(s.floor, after) AS floor,
            least(s.published - s.removed, s.last_seq - greatest(s.trimmed, s.floor, after)) AS kept
        FROM sse_app.selected(log, texts, after, floors) AS s
    ), readable AS (
        SELECT s.*, greatest(s.trimmed, s.floor) AS bound FROM all_selected AS s
        WHERE s.last_seq > greatest(s.trimmed, s.floor)
        ORDER BY s.last_seq DESC LIMIT CASE WHEN newest_first THEN most + 1 END
    )
    SELECT array_agg(r.id), array_agg(r.bound), array_agg(r.name), min(r.bound), least(max(r.last_seq), until),
            sum(r.kept), sum(least(r.kept, most + 1)), CASE WHEN count(*) > most THEN min(r.last_seq) ELSE 0 END,
            (SELECT bool_or(s.trimmed > s.floor) FROM all_selected AS s)
        INTO ids, bounds, names, lowest, highest, kept, merged, oldest, gap FROM readable AS r;
    gap := coalesce(gap, false) OR EXISTS (
        SELECT FROM unnest(texts) AS t WHERE strpos(t, '*') > 0
            AND log.forgotten > greatest(after, (floors ->> t)::bigint));
    IF NOT gap AND log.forgotten > after THEN  -- a channel that was there when a stream began may be forgotten since
        gap := EXISTS (
            SELECT FROM jsonb_each_text(floors) AS f WHERE f.value::bigint < log.forgotten AND strpos(f.key, '*') = 0
                AND NOT EXISTS (SELECT FROM sse_app.channels AS c WHERE c.name = f.key));
    END IF;
    -- Where many channels have many events, some for each of them are more than all events there are up to enough of them.
    IF NOT newest_first AND cardinality(ids) > 64 AND (highest - lowest) * most / greatest(kept, 1) < merged THEN
        SELECT s.seqs, s.looked INTO seqs, looked
            FROM sse_app.scanned(ids, bounds, lowest, highest, most, budget) AS s;
        IF cardinality(seqs) > most THEN
            looked := NULL;
        END IF;
        RETURN NEXT;
        RETURN QUERY SELECT p.seq, c.name, p.type, p.data, p.retry, p.flags, p.found > p.number, false, NULL::bigint
            FROM (
                SELECT e.*, row_number() OVER w AS number, count(*) OVER () AS found,
                    sum(octet_length(e.data)) OVER w - octet_length(e.data) AS before
                FROM sse_app.events AS e WHERE e.seq = ANY (seqs)
                WINDOW w AS (ORDER BY e.seq)) AS p
            CROSS JOIN LATERAL (SELECT c.name FROM sse_app.channels AS c WHERE c.id = p.channel OFFSET 0) AS c
            WHERE p.number <= most AND p.before < bytes ORDER BY p.seq;
        RETURN;
    END IF;
    RETURN NEXT;
    IF newest_first THEN
        RETURN QUERY SELECT p.seq, names[p.place], p.type, p.data, p.retry, p.flags, p.found > p.number, false,
                NULL::bigint
            FROM (
                SELECT e.*, row_number() OVER w AS number, count(*) OVER () AS found,
                    sum(octet_length(e.data)) OVER w - octet_length(e.data) AS before
                FROM (
                    SELECT one.*, c.place FROM unnest(ids, bounds) WITH ORDINALITY AS c (id, bound, place)
                    CROSS JOIN LATERAL (
                        SELECT * FROM sse_app.events
                        WHERE channel = c.id AND seq > c.bound AND seq >= oldest AND seq <= until
                        ORDER BY seq DESC LIMIT most + 1) AS one
                    ORDER BY one.seq DESC LIMIT most + 1) AS e
                WINDOW w AS (ORDER BY e.seq DESC)) AS p
            WHERE p.number <= most AND p.before < bytes ORDER BY p.seq;
    ELSE
        RETURN QUERY SELECT p.seq, names[p.place], p.type, p.data, p.retry, p.flags, p.found > p.number, false,
                NULL::bigint
            FROM (
                SELECT e.*, row_number() OVER w AS number, count(*) OVER () AS found,
                    sum(octet_length(e.data)) OVER w - octet_length(e.data) AS before
                FROM (
                    SELECT one.*, c.place FROM unnest(ids, bounds) WITH ORDINALITY AS c (id, bound, place)
                    CROSS JOIN LATERAL (
                        SELECT * FROM sse_app.events WHERE channel = c.id AND seq > c.bound AND seq <= until
                        ORDER BY seq LIMIT most + 1) AS one
                    ORDER BY one.seq LIMIT most + 1) AS e
                WINDOW w AS (ORDER BY e.seq)) AS p
            WHERE p.number <= most AND p.before < bytes ORDER BY p.seq;
    END IF;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA sse_app FROM PUBLIC;
