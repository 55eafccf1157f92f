-- How much of each channel is kept: the rules for that, what is no longer kept by them, and how it is erased.
--
-- Each channel has its size and age in its row. Events are erased in log order for each age that there is, so that none
-- is looked at again and again whose channel has a longer one.

-- For patterns of channels how many events of each are kept, and for how many seconds. The first that covers a channel
-- counts; the last covers all. Each node writes it when it opens the log and when it is reloaded. The last one counts.
CREATE TABLE sse_app.retention (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    patterns text[] NOT NULL,
    sizes bigint[] NOT NULL,
    ages double precision[] NOT NULL,
    expressions text[] NOT NULL
);
INSERT INTO sse_app.retention (patterns, sizes, ages, expressions)
    VALUES ('{**}', '{10000}', '{86400}', sse_app.channel_expressions('{**}'));

-- The ages that channels may have.
CREATE TABLE sse_app.ages (
    age double precision PRIMARY KEY,
    erased bigint NOT NULL              -- all events up to this one, of channels of this age, have been erased by it
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
INSERT INTO sse_app.ages (age, erased) VALUES (86400, 0);

-- Return how much of a channel is kept.
CREATE FUNCTION sse_app.retention_of(channel text, OUT size bigint, OUT age double precision)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    rules sse_app.retention;
    place integer;
BEGIN
    SELECT * INTO STRICT rules FROM sse_app.retention AS r WHERE r.one;
    place := sse_app.first_covering(channel, rules.patterns, rules.expressions);
    size := rules.sizes[place];
    age := rules.ages[place];
END
$$;

CREATE FUNCTION sse_app.channel_retention() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    SELECT r.size, r.age INTO NEW.size, NEW.age FROM sse_app.retention_of(NEW.name) AS r;
    RETURN NEW;
END
$$;
CREATE TRIGGER retention BEFORE INSERT ON sse_app.channels FOR EACH ROW EXECUTE FUNCTION sse_app.channel_retention();
-- Also where an event is published in a session that applies another database's changes.
ALTER TABLE sse_app.channels ENABLE ALWAYS TRIGGER retention;

-- Take other rules, and have them be in force for the channels that there are.
--   patience: see sse_app.lock_log.
CREATE FUNCTION sse_app.set_retention(patterns text[], sizes bigint[], ages double precision[], patience integer)
RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
    oldest bigint;
BEGIN
    PERFORM FROM sse_app.retention AS r WHERE (r.patterns, r.sizes, r.ages) = (patterns, sizes, ages);
    IF FOUND THEN
        RETURN;
    END IF;
    PERFORM set_config('lock_timeout', patience::text, true);
    -- Nothing is erased meanwhile, and no channel is made, in the order in which sse_app.expire locks.
    PERFORM FROM sse_app.erasing FOR UPDATE;
    PERFORM FROM sse_app.log FOR UPDATE;
    INSERT INTO sse_app.retention AS r (patterns, sizes, ages, expressions)
        VALUES (patterns, sizes, ages, sse_app.channel_expressions(patterns))
        ON CONFLICT (one) DO UPDATE SET patterns = excluded.patterns, sizes = excluded.sizes, ages = excluded.ages,
            expressions = excluded.expressions;
    UPDATE sse_app.channels AS c SET size = wanted.size, age = wanted.age
        FROM (SELECT id, (sse_app.retention_of(name)).* FROM sse_app.channels OFFSET 0) AS wanted
        WHERE c.id = wanted.id AND (c.size, c.age) IS DISTINCT FROM (wanted.size, wanted.age);
    -- Of a channel with another age or size there may be something to erase among what was looked at already.
    SELECT coalesce(min(a.erased), 0) INTO oldest FROM sse_app.ages AS a;
    DELETE FROM sse_app.ages;
    INSERT INTO sse_app.ages (age, erased) SELECT DISTINCT age, oldest FROM unnest(ages) AS age;
    UPDATE sse_app.log SET looked = least(looked, oldest), erased = oldest;
END
$$;

-- Return the last event that is dated before a time; where there is none, the one that is known to be erased.
--   known: an event up to which all are dated before that time, or are of no interest.
CREATE FUNCTION sse_app.dated_before(log sse_app.log, known bigint, before double precision) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
DECLARE
    low bigint := known;
    high bigint := log.seq;
    middle bigint := known + 1; -- mostly the oldest event says that none is so old
    found record;
BEGIN
    WHILE low < high LOOP
        SELECT seq, at INTO found FROM sse_app.events WHERE seq >= middle AND seq <= high ORDER BY seq LIMIT 1;
        IF found.seq IS NULL THEN
            high := middle - 1;
        ELSIF found.at < before THEN
            low := found.seq;
        ELSE
            high := middle - 1;
        END IF;
        middle := low + (high - low + 1) / 2;
    END LOOP;
    RETURN low;
END
$$;

-- Return for each age the last event that is so old, erased yet or not.
CREATE FUNCTION sse_app.expired(log sse_app.log, OUT age double precision, OUT erased bigint, OUT until bigint)
RETURNS SETOF record
LANGUAGE sql STABLE ROWS 3 AS $$
    SELECT a.age, a.erased, sse_app.dated_before(log, a.erased, sse_app.now_of(log.at, log.wall) - a.age)
    FROM sse_app.ages AS a
$$;

-- Return the last event of a channel that is no longer kept, erased yet or not. (As a set of one row, which becomes a part
-- of the query that asks; to call a function for each of many channels takes most of the time.)
--   erased, expired: as sse_app.expired says for its age.
CREATE FUNCTION sse_app.trimmed_of(c sse_app.channels, erased bigint, expired bigint) RETURNS SETOF bigint
LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT greatest(
        c.trimmed,
        CASE WHEN c.published - c.size > c.removed THEN
            (SELECT e.seq FROM sse_app.events AS e WHERE e.channel = c.id AND e.n = c.published - c.size) END,
        CASE WHEN expired > greatest(c.trimmed, erased) AND c.last_seq > greatest(c.trimmed, erased) THEN
            (SELECT e.seq FROM sse_app.events AS e
            WHERE e.channel = c.id AND e.seq > greatest(c.trimmed, erased) AND e.seq <= expired
            ORDER BY e.seq DESC LIMIT 1) END)
$$;

-- Return the log's epoch and head, and whether events of any channel that follow a position are no longer kept.
CREATE FUNCTION sse_app.trimmed_after(after bigint, OUT epoch text, OUT head bigint, OUT trimmed boolean)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    log sse_app.log;
BEGIN
    SELECT * INTO STRICT log FROM sse_app.log;
    epoch := log.epoch;
    head := log.seq;
    trimmed := false;
    IF head > after THEN
        trimmed := log.forgotten > after OR EXISTS (
            SELECT FROM sse_app.channels AS c JOIN sse_app.expired(log) AS x ON x.age = c.age
            CROSS JOIN LATERAL sse_app.trimmed_of(c, x.erased, x.until) AS gone (seq)
            WHERE c.last_seq > after AND gone.seq > after);
    END IF;
END
$$;

-- Erase some of what is no longer kept, in one process at a time, and return whether there may be more of it.
-- The log is locked for a moment at the end, when the events are erased already, and not until that is on disk.
--   lag: what is too much for its channel is erased when it is so many seconds old, so that nodes that lag still get it.
--   most: how many events are looked at for each age, and how many are erased as too much, at the most.
CREATE FUNCTION sse_app.expire(lag double precision, most integer, patience integer) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    log sse_app.log;
    now double precision;
    aged sse_app.ages;
    until bigint;                       -- the last event that is so old
    passed bigint;                      -- the last one that was looked at for an age
    ages double precision[] := '{}';
    erased_now bigint[] := '{}';
    looked_now bigint;
    ids integer[] := '{}';
    seqs bigint[] := '{}';
    numbers bigint[] := '{}';
    more_ids integer[];
    more_seqs bigint[];
    more_numbers bigint[];
    surplus integer := 0;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true); -- what a crash brings back is erased again
    PERFORM FROM sse_app.erasing FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT * INTO STRICT log FROM sse_app.log;
    now := sse_app.now_of(log.at, log.wall);
    FOR aged IN SELECT * FROM sse_app.ages LOOP
        until := sse_app.dated_before(log, aged.erased, now - aged.age);
        CONTINUE WHEN until = aged.erased;
        WITH due AS MATERIALIZED (
            SELECT seq, channel FROM sse_app.events WHERE seq > aged.erased AND seq <= until ORDER BY seq LIMIT most
        ), gone AS (
            DELETE FROM sse_app.events WHERE seq = ANY (ARRAY(
                SELECT due.seq FROM due CROSS JOIN LATERAL (
                    SELECT c.age FROM sse_app.channels AS c WHERE c.id = due.channel OFFSET 0) AS its
                WHERE its.age = aged.age))
            RETURNING channel, seq, n
        ), by_channel AS (
            SELECT channel, max(seq) AS seq, max(n) AS n FROM gone GROUP BY channel
        )
        SELECT (SELECT max(seq) FROM due), array_agg(channel), array_agg(seq), array_agg(n)
            INTO passed, more_ids, more_seqs, more_numbers FROM by_channel;
        ages := ages || aged.age;
        erased_now := erased_now || passed;
        ids := ids || more_ids;
        seqs := seqs || more_seqs;
        numbers := numbers || more_numbers;
    END LOOP;
    looked_now := greatest(log.looked, log.erased);
    until := sse_app.dated_before(log, looked_now, now - lag);
    SELECT coalesce(max(seq), looked_now) INTO looked_now FROM (
        SELECT seq FROM sse_app.events WHERE seq > looked_now AND seq <= until ORDER BY seq LIMIT most) AS next;
    IF looked_now > log.looked THEN
        WITH touched AS (
            SELECT DISTINCT channel FROM sse_app.events WHERE seq > log.looked AND seq <= looked_now
        ), due AS (
            SELECT one.seq FROM touched CROSS JOIN LATERAL (
                SELECT * FROM sse_app.channels AS c WHERE c.id = touched.channel OFFSET 0) AS c
            CROSS JOIN LATERAL (
                SELECT seq FROM sse_app.events WHERE channel = c.id AND n > c.removed AND n <= c.published - c.size
                    AND seq <= looked_now
                ORDER BY n LIMIT most) AS one
            LIMIT most
        ), gone AS (
            DELETE FROM sse_app.events WHERE seq = ANY (ARRAY(SELECT seq FROM due)) RETURNING channel, seq, n
        ), by_channel AS (
            SELECT channel, max(seq) AS seq, max(n) AS n, count(*) AS count FROM gone GROUP BY channel
        )
        SELECT coalesce(sum(count), 0), ids || array_agg(channel), seqs || array_agg(seq), numbers || array_agg(n)
            INTO surplus, ids, seqs, numbers FROM by_channel;
    END IF;
    IF ages = '{}' AND looked_now = log.looked THEN
        RETURN false;
    END IF;
    PERFORM set_config('lock_timeout', patience::text, true);
    PERFORM FROM sse_app.log FOR UPDATE;
    UPDATE sse_app.channels AS c SET trimmed = greatest(c.trimmed, lost.seq), removed = greatest(c.removed, lost.n)
        FROM (SELECT id, max(seq) AS seq, max(n) AS n FROM unnest(ids, seqs, numbers) AS all_lost (id, seq, n)
            GROUP BY id) AS lost
        WHERE c.id = lost.id;
    UPDATE sse_app.ages AS a SET erased = now_erased.seq
        FROM unnest(ages, erased_now) AS now_erased (age, seq) WHERE a.age = now_erased.age;
    UPDATE sse_app.log SET erased = (SELECT min(erased) FROM sse_app.ages),
        looked = CASE WHEN surplus < most THEN looked_now ELSE looked END;
    RETURN true;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA sse_app FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA sse_app FROM PUBLIC;
