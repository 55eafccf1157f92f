-- The event log: its events, the answers to idempotency keys, and the functions that append, read and erase.
--
-- The row of sse_app.log is locked from the beginning of an append to its commit. So the order of seq is the order of
-- commits and that in which events become visible: who has read up to one has not missed one before it.

CREATE TABLE sse_app.log (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch text NOT NULL,
    seq bigint NOT NULL DEFAULT 0,
    at double precision NOT NULL,       -- the date of the last event; it never goes back
    wall double precision NOT NULL,     -- what the server's clock said then
    forgotten bigint NOT NULL DEFAULT 0, -- the last event of any channel that has been forgotten
    system bigint NOT NULL,             -- of which cluster, timeline and table the row is: see sse_app.same_log
    timeline integer NOT NULL,
    made bigint NOT NULL,
    started timestamptz NOT NULL DEFAULT '-infinity', -- the start of the server that found system to be its own
    standbys text NOT NULL DEFAULT '',  -- the synchronous standbys that the last append waited for
    erased bigint NOT NULL DEFAULT 0,   -- all events up to this one have been erased by their age
    looked bigint NOT NULL DEFAULT 0,   -- what the events up to this one have made too many has been erased
    swept double precision NOT NULL DEFAULT 0 -- when channels were last forgotten
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE TABLE sse_app.channels (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE, -- so the index finds those that begin alike
    published bigint NOT NULL DEFAULT 0,
    last_seq bigint NOT NULL DEFAULT 0,
    trimmed bigint NOT NULL,            -- the seq and the n of its last event that has been erased
    removed bigint NOT NULL DEFAULT 0,
    size bigint NOT NULL,               -- how much of it is kept: see sse_app.retention
    age double precision NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1);

CREATE TABLE sse_app.events (
    seq bigint PRIMARY KEY,
    channel integer NOT NULL,
    n bigint NOT NULL,
    type text NOT NULL,
    data bytea NOT NULL,
    retry integer,
    at double precision NOT NULL,
    flags smallint NOT NULL DEFAULT 0,  -- 1: data is a text as it is; 2: the event is the last one of its channel
    UNIQUE (channel, n),
    UNIQUE (channel, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.1,
        autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE sse_app.idempotency (
    subject bytea NOT NULL,
    key text NOT NULL,
    digest bytea NOT NULL,
    seq bigint NOT NULL,                -- of the first event
    count integer NOT NULL,
    at double precision NOT NULL,
    PRIMARY KEY (subject, key)
);
CREATE INDEX idempotency_at ON sse_app.idempotency (at);

-- Whoever erases locks its row. (An advisory lock could be held by any role of the database.)
CREATE TABLE sse_app.erasing (one boolean PRIMARY KEY DEFAULT true CHECK (one)) WITH (fillfactor = 10);
INSERT INTO sse_app.erasing DEFAULT VALUES;

-- The time by which events are dated: it goes with the server's clock, but never back.
CREATE FUNCTION sse_app.now_of(at double precision, wall double precision) RETURNS double precision
LANGUAGE sql VOLATILE AS $$
    SELECT at + greatest(0, extract(epoch FROM clock_timestamp()) - wall)::double precision
$$;

-- The timeline that this server writes; it is another one after each promotion and each recovery to a point in time.
CREATE FUNCTION sse_app.timeline() RETURNS integer
LANGUAGE sql VOLATILE AS $$
    SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer
$$;

-- The standbys that a commit of this session waits for until they have it on disk; '' where it waits for none.
CREATE FUNCTION sse_app.standbys() RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN current_setting('synchronous_commit') IN ('on', 'remote_apply')
        THEN current_setting('synchronous_standby_names') ELSE '' END
$$;

-- The standbys each of which certainly has every commit that waits for those of a list (as in
-- synchronous_standby_names): all whom it names, where it requires all of them, and else none.
CREATE FUNCTION sse_app.required(standbys text) RETURNS text[]
LANGUAGE plpgsql STABLE AS $$
DECLARE
    parts text[] := regexp_match(standbys, '^\s*(?:(?:FIRST|ANY)?\s*(\d+)\s*\(([^()]*)\)|([^()]*))\s*$', 'i');
    names text[];
BEGIN
    SELECT array_agg(DISTINCT lower(btrim(name, E' \t\n"'))) INTO names
        FROM regexp_split_to_table(coalesce(parts[2], parts[3]), ',') AS name;
    RETURN CASE WHEN '*' <> ALL(names) AND '' <> ALL(names) AND cardinality(names) = coalesce(parts[1]::integer, 1)
        THEN names ELSE '{}' END;
END
$$;

-- Whether this server, as a standby, certainly had every commit that waited for the standbys of a list.
CREATE FUNCTION sse_app.had_all(standbys text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
DECLARE
    own text := nullif(substring(
        (SELECT setting FROM pg_settings WHERE name = 'primary_conninfo') -- only some roles are told
        FROM 'application_name\s*=\s*''?([^'' ]+)'), '');
BEGIN
    own := lower(coalesce(own, nullif(current_setting('cluster_name'), '')));
    RETURN coalesce(own = ANY(sse_app.required(standbys)), false);
END
$$;

-- Whether commits here wait for each standby that certainly had what was appended last. As long as they do, none is
-- acknowledged here once such a standby has been promoted. Where they do not any more, as at an old primary that is
-- written again, it may be promoted by now, and give the next numbers of this epoch to other events.
CREATE FUNCTION sse_app.still_required(standbys text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT standbys = '' OR standbys = current_setting('synchronous_standby_names')
        OR sse_app.required(standbys) <@ sse_app.required(current_setting('synchronous_standby_names'))
$$;

-- Whether a row of sse_app.log was last written here: by this cluster, on its present timeline, in this very table,
-- which a restored dump would have made anew; and all is still waited for that was waited for then. To ask the cluster
-- for its number is to read a file: that is done once after each start of the server.
CREATE FUNCTION sse_app.same_log(log sse_app.log) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
    SELECT log.started = pg_postmaster_start_time() AND log.timeline = sse_app.timeline()
        AND log.made = 'sse_app.log'::regclass::oid::bigint AND sse_app.still_required(log.standbys)
$$;

-- Lock the log, give it another epoch where it may have lost events that were acknowledged, and return its row.
--   known_epoch, known_seq: the position of an event that is known to have been in the log; '' and 0 where none is.
--   patience: for how many milliseconds it may wait for the lock.
CREATE FUNCTION sse_app.lock_log(known_epoch text, known_seq bigint, patience integer) RETURNS sse_app.log
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    log sse_app.log;
    system_now bigint;
    timeline_now integer;
    made_now bigint := 'sse_app.log'::regclass::oid::bigint;
    lost boolean;
BEGIN
    PERFORM set_config('lock_timeout', patience::text, true);
    -- Else a crash could take back events that clients have, and their numbers would be given again.
    PERFORM sse_app.wait_for_disk();
    SELECT * INTO STRICT log FROM sse_app.log FOR UPDATE;
    lost := log.epoch = known_epoch AND log.seq < known_seq; -- an earlier state of itself was restored
    IF lost OR NOT sse_app.same_log(log) THEN
        SELECT system_identifier INTO system_now FROM pg_control_system();
        timeline_now := sse_app.timeline();
        IF lost OR log.system <> system_now OR log.made <> made_now
            OR (log.timeline <> timeline_now AND NOT sse_app.had_all(log.standbys))
            OR (log.timeline = timeline_now AND NOT sse_app.still_required(log.standbys))
        THEN
            log.epoch := substr(replace(gen_random_uuid()::text, '-', ''), 1, 8);
        END IF;
        UPDATE sse_app.log AS stored
            SET epoch = log.epoch, system = system_now, timeline = timeline_now, made = made_now,
                started = pg_postmaster_start_time(),
                standbys = CASE WHEN stored.epoch = log.epoch AND stored.timeline = timeline_now
                    THEN stored.standbys ELSE '' END -- else they were waited for elsewhere, or before
            RETURNING * INTO log;
    END IF;
    RETURN log;
END
$$;

-- Return the log's epoch and head, after a look at whether it is the one that was known; it is made where there is none.
CREATE FUNCTION sse_app.look(known_epoch text, known_seq bigint, patience integer, OUT epoch text, OUT seq bigint)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    log sse_app.log;
BEGIN
    SELECT * INTO log FROM sse_app.log;
    IF NOT FOUND THEN
        UPDATE sse_app.ages SET erased = 0;
        INSERT INTO sse_app.log (epoch, seq, at, wall, system, timeline, made)
        SELECT substr(replace(gen_random_uuid()::text, '-', ''), 1, 8),
            coalesce((SELECT max(e.seq) FROM sse_app.events AS e), 0), now, now, system_identifier,
            sse_app.timeline(), 'sse_app.log'::regclass::oid::bigint
        FROM pg_control_system(), (SELECT extract(epoch FROM clock_timestamp()) AS now) AS clock
        ON CONFLICT (one) DO NOTHING;
        SELECT * INTO log FROM sse_app.log;
    END IF;
    IF (log.epoch = known_epoch AND log.seq < known_seq) OR NOT sse_app.same_log(log) THEN
        log := sse_app.lock_log(known_epoch, known_seq, patience);
        PERFORM pg_notify('sse_app_events', concat_ws(' ', log.epoch, log.seq, '-'));
    END IF;
    epoch := log.epoch;
    seq := log.seq;
END
$$;

-- Append the events of several requests, all or none, and answer each of them.
--   known_epoch, known_seq, patience: see sse_app.lock_log.
--   sender: who appends; it is told to all with the notification, so that it need not heed its own.
--   channels, types, data, retries, flags: of each event, of all requests in their order; retries and flags may be null.
--   counts: how many events each request has.
--   subjects, keys, digests: of each request's idempotency key, null where it has none; all three may be null.
--   sealed: what the notification says where all events are stored, and directly after the known one; or null.
-- Returns the epoch; the seq of the last event before; and of each request the seq of its first event, also where its key
-- is known, which it is for a day: from an earlier call, or from a request before it. Then nothing is stored for it. It is
-- 0 where the key is known with another digest.
--
-- All of a cluster's appends wait for each other here, so it matters how long one takes. Its plans are made once in a
-- session, and use indexes whatever the tables' statistics say: so they stay right while tables grow.
CREATE FUNCTION sse_app.append(
    known_epoch text, known_seq bigint, patience integer, sender text,
    channels text[], types text[], data bytea[], retries integer[], flags integer[], counts integer[],
    subjects bytea[], keys text[], digests bytea[], sealed text,
    OUT epoch text, OUT head bigint, OUT firsts bigint[]
)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    lock_timeout CONSTANT text := set_config('lock_timeout', patience::text, true); -- before the first lock
    waits_for CONSTANT text := sse_app.standbys();
    total CONSTANT integer := cardinality(channels);
    log sse_app.log;
    now double precision;
    first bigint;
    place integer := 1;
    known sse_app.idempotency;
    answered int4multirange := '{}';
    channel_id integer;
    channel_n bigint;
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM sse_app.wait_for_disk(); -- as in sse_app.lock_log
    END IF;
    -- This locks the log. It is an update also where all is known below: this commit is not on a synchronous standby
    -- before the one that stored it.
    UPDATE sse_app.log AS l SET seq = l.seq + total, at = sse_app.now_of(l.at, l.wall),
            wall = extract(epoch FROM clock_timestamp()), standbys = waits_for
        WHERE l.one AND sse_app.same_log(l) AND NOT (l.epoch = known_epoch AND l.seq < known_seq)
            AND (l.standbys = '' OR l.standbys = waits_for)
        RETURNING * INTO log;
    IF NOT FOUND THEN
        log := sse_app.lock_log(known_epoch, known_seq, patience);
        IF log.standbys <> '' AND waits_for = '' THEN
            -- Before events come that a standby may lack, it has to know that they are not waited for.
            PERFORM set_config('synchronous_commit', 'on', true);
        END IF;
        UPDATE sse_app.log AS l SET seq = l.seq + total, at = sse_app.now_of(l.at, l.wall),
                wall = extract(epoch FROM clock_timestamp()), standbys = waits_for
            WHERE l.one RETURNING * INTO STRICT log;
    END IF;
    now := log.at;
    epoch := log.epoch;
    head := log.seq - total;
    first := head + 1;
    FOR request IN 1 .. cardinality(counts) LOOP
        known := NULL;
        IF keys[request] IS NOT NULL THEN
            SELECT * INTO known FROM sse_app.idempotency
                WHERE subject = subjects[request] AND key = keys[request] AND at > now - 86400;
        END IF;
        IF known.seq IS NOT NULL THEN
            firsts[request] := CASE WHEN known.digest = digests[request] THEN known.seq ELSE 0 END;
            answered := answered + int4multirange(int4range(place, place + counts[request]));
        ELSE
            firsts[request] := first;
            IF keys[request] IS NOT NULL THEN
                INSERT INTO sse_app.idempotency (subject, key, digest, seq, count, at)
                    VALUES (subjects[request], keys[request], digests[request], first, counts[request], now)
                    ON CONFLICT (subject, key) DO UPDATE SET
                        digest = excluded.digest, seq = excluded.seq, count = excluded.count, at = excluded.at;
            END IF;
            first := first + counts[request];
        END IF;
        place := place + counts[request];
    END LOOP;
    IF first <= log.seq THEN
        UPDATE sse_app.log AS l SET seq = first - 1 WHERE l.one;
    END IF;
    IF first = head + 1 THEN
        RETURN;
    END IF;
    IF total = 1 THEN -- as below, in half the time
        UPDATE sse_app.channels AS c SET published = c.published + 1, last_seq = log.seq
            WHERE c.name = channels[1] RETURNING c.id, c.published INTO channel_id, channel_n;
        IF NOT FOUND THEN
            INSERT INTO sse_app.channels AS c (name, published, last_seq, trimmed)
                VALUES (channels[1], 1, log.seq, log.forgotten) RETURNING c.id, c.published INTO channel_id, channel_n;
        END IF;
        INSERT INTO sse_app.events (seq, channel, n, type, data, retry, at, flags)
            VALUES (log.seq, channel_id, channel_n, types[1], data[1], retries[1], now, coalesce(flags[1], 0));
    ELSE
        INSERT INTO sse_app.channels (name, trimmed)
            SELECT DISTINCT name, log.forgotten FROM unnest(channels) AS name
            WHERE NOT EXISTS (SELECT FROM sse_app.channels AS there WHERE there.name = name.name);
        WITH new AS MATERIALIZED (
            SELECT head + row_number() OVER (ORDER BY place) AS seq, name, type, content, retry,
                coalesce(flag, 0) AS flag
            FROM unnest(channels, types, data, retries, flags) WITH ORDINALITY
                AS e (name, type, content, retry, flag, place)
            WHERE answered = '{}' OR NOT answered @> place::integer
        ), counted AS (
            SELECT name, count(*) AS count, max(seq) AS last FROM new GROUP BY name
        ), changed AS (
            UPDATE sse_app.channels AS c SET published = published + counted.count, last_seq = counted.last
            FROM counted WHERE c.name = counted.name
            RETURNING c.id, c.name, c.published - counted.count AS before
        )
        INSERT INTO sse_app.events (seq, channel, n, type, data, retry, at, flags)
            SELECT new.seq, changed.id, changed.before + row_number() OVER (PARTITION BY changed.id ORDER BY new.seq),
                new.type, new.content, new.retry, now, new.flag
            FROM new JOIN changed ON changed.name = new.name;
    END IF;
    PERFORM pg_notify('sse_app_events', concat_ws(' ', epoch, first - 1, sender,
        CASE WHEN epoch = known_epoch AND head = known_seq AND first - 1 = head + total THEN sealed END));
END
$$;

-- Return the first events after a position, of all channels, whether or not retention still keeps them; and first one
-- row without an event that says the log's epoch and head, in the places of name and seq. Arguments as of sse_app.page.
-- Its plans are made as those of sse_app.append.
CREATE FUNCTION sse_app.following(
    after bigint, most integer, bytes bigint,
    OUT seq bigint, OUT name text, OUT type text, OUT data bytea, OUT retry integer, OUT flags smallint,
    OUT more boolean
) RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    SELECT l.seq, l.epoch INTO STRICT seq, name FROM sse_app.log AS l WHERE l.one;
    RETURN NEXT;
    RETURN QUERY SELECT p.seq, c.name, p.type, p.data, p.retry, p.flags, p.found > p.number
        FROM (
            SELECT e.*, row_number() OVER w AS number, count(*) OVER () AS found,
                sum(octet_length(e.data)) OVER w - octet_length(e.data) AS before
            FROM (SELECT * FROM sse_app.events WHERE seq > after ORDER BY seq LIMIT most + 1) AS e
            WINDOW w AS (ORDER BY e.seq)) AS p
        LEFT JOIN sse_app.channels AS c ON c.id = p.channel
        WHERE p.number <= most AND p.before < bytes ORDER BY p.seq;
END
$$;

-- Forget the answers to keys that are too old, some at a time, and return how many.
CREATE FUNCTION sse_app.expire_answers(most integer) RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    log sse_app.log;
    gone integer;
BEGIN
    SELECT * INTO STRICT log FROM sse_app.log;
    DELETE FROM sse_app.idempotency WHERE (subject, key) IN (
        SELECT subject, key FROM sse_app.idempotency WHERE at <= sse_app.now_of(log.at, log.wall) - 86400
        ORDER BY at LIMIT most FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

-- Forget the channels that were used longest ago, of those of which no event is left, but for so many.
--   interval: it is not done again before so many seconds have passed.
CREATE FUNCTION sse_app.forget_channels(remembered integer, most integer, "interval" double precision, patience integer)
RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    log sse_app.log;
    now double precision;
    ids integer[];
    until bigint;
    gone integer;
BEGIN
    SELECT * INTO STRICT log FROM sse_app.log;
    now := sse_app.now_of(log.at, log.wall);
    IF now < log.swept + "interval" THEN
        RETURN 0;
    END IF;
    SELECT array_agg(id) INTO ids FROM (
        SELECT id FROM (
            SELECT id, last_seq FROM sse_app.channels WHERE trimmed >= last_seq
            ORDER BY last_seq DESC OFFSET remembered) AS empty
        ORDER BY last_seq LIMIT most) AS surplus;
    PERFORM set_config('lock_timeout', patience::text, true);
    PERFORM FROM sse_app.log FOR UPDATE;
    WITH forgotten AS (
        DELETE FROM sse_app.channels WHERE id = ANY (ids) AND trimmed >= last_seq RETURNING last_seq
    )
    SELECT max(last_seq), count(*) INTO until, gone FROM forgotten;
    UPDATE sse_app.log SET forgotten = greatest(forgotten, until),
        swept = CASE WHEN gone < most THEN now ELSE swept END;
    RETURN gone;
END
$$;
