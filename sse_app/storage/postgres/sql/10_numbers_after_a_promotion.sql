-- A promoted standby that has all that was acknowledged goes on in the same epoch, after a hole in its numbers.
--
-- The primary may have shown more than that: commits that waited for the standby when its postmaster died, when someone
-- ended their wait, or when it had crashed and was started again. Nodes have sent such events to clients, and others must
-- not get their numbers.

ALTER TABLE sse_app.log
    ADD COLUMN holes int8multirange NOT NULL DEFAULT '{}', -- numbers that no event of this epoch has here
    ADD COLUMN skips bigint NOT NULL DEFAULT 0; -- how many the next event leaves out

-- Whether a log certainly lacks an event that is known to have been in it.
CREATE FUNCTION sse_app.lacks(log sse_app.log, known_epoch text, known_seq bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT log.epoch = known_epoch AND (log.seq < known_seq OR log.holes @> known_seq)
$$;

-- As before; and where the epoch is kept at another server, the next event comes after a hole.
CREATE OR REPLACE FUNCTION sse_app.lock_log(known_epoch text, known_seq bigint, patience integer) RETURNS sse_app.log
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
    lost := sse_app.lacks(log, known_epoch, known_seq); -- an earlier state of itself was restored
    IF lost OR NOT sse_app.same_log(log) THEN
        SELECT system_identifier INTO system_now FROM pg_control_system();
        timeline_now := sse_app.timeline();
        IF lost OR log.system <> system_now OR log.made <> made_now
            OR (log.timeline <> timeline_now AND NOT sse_app.had_all(log.standbys))
            OR (log.timeline = timeline_now AND NOT sse_app.still_required(log.standbys))
        THEN
            log.epoch := substr(replace(gen_random_uuid()::text, '-', ''), 1, 8);
            log.holes := '{}';
            log.skips := 0;
        ELSIF log.timeline <> timeline_now THEN
            log.skips := log.skips + 1000000000;
        END IF;
        UPDATE sse_app.log AS stored
            SET epoch = log.epoch, system = system_now, timeline = timeline_now, made = made_now,
                started = pg_postmaster_start_time(), holes = log.holes, skips = log.skips,
                standbys = CASE WHEN stored.epoch = log.epoch AND stored.timeline = timeline_now
                    THEN stored.standbys ELSE '' END -- else they were waited for elsewhere, or before
            RETURNING * INTO log;
    END IF;
    RETURN log;
END
$$;

-- As before, and a log also lacks what lies in a hole.
CREATE OR REPLACE FUNCTION sse_app.look(known_epoch text, known_seq bigint, patience integer, OUT epoch text, OUT seq bigint)
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
    IF sse_app.lacks(log, known_epoch, known_seq) OR NOT sse_app.same_log(log) THEN
        log := sse_app.lock_log(known_epoch, known_seq, patience);
        PERFORM pg_notify('sse_app_events', concat_ws(' ', log.epoch, log.seq, '-'));
    END IF;
    epoch := log.epoch;
    seq := log.seq;
END
$$;

-- As before, and leaves numbers out where it has to. (As long as nothing new is appended, the log ends where it did: so
-- its last number is always that of an event.)
CREATE OR REPLACE FUNCTION sse_app.append(
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
        WHERE l.one AND sse_app.same_log(l) AND NOT sse_app.lacks(l, known_epoch, known_seq)
            AND (l.standbys = '' OR l.standbys = waits_for) AND l.skips = 0
        RETURNING * INTO log;
    IF NOT FOUND THEN
        log := sse_app.lock_log(known_epoch, known_seq, patience);
        IF log.standbys <> '' AND waits_for = '' THEN
            -- Before events come that a standby may lack, it has to know that they are not waited for.
            PERFORM set_config('synchronous_commit', 'on', true);
        END IF;
        UPDATE sse_app.log AS l SET seq = l.seq + l.skips + total, at = sse_app.now_of(l.at, l.wall),
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
    IF first = head + 1 THEN -- nothing is new
        head := head - log.skips;
        IF head < log.seq THEN
            UPDATE sse_app.log AS l SET seq = head WHERE l.one;
        END IF;
        RETURN;
    END IF;
    IF first <= log.seq OR log.skips > 0 THEN
        UPDATE sse_app.log AS l SET seq = first - 1, skips = 0,
                holes = l.holes + int8multirange(int8range(head - log.skips + 1, head + 1))
            WHERE l.one;
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

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA sse_app FROM PUBLIC;
