-- A refresh that was repeated can be repeated for as long again: while commits wait for a standby that is away, the
-- answers to both are lost.

-- As before, and a repetition counts as the last time at which the token was spent.
CREATE OR REPLACE FUNCTION sse_app.spend_refresh_token(
    p_digest bytea, p_next bytea, p_seed bytea, p_now double precision, p_idle double precision,
    p_absolute double precision, p_repeatable double precision, p_kept bigint,
    p_made_at double precision, p_forget_at double precision, p_never double precision,
    OUT refused text, OUT session text, OUT subject text, OUT expires_at double precision, OUT seed bytea,
    OUT grants text
) LANGUAGE plpgsql AS $$
DECLARE
    v_session sse_app.sessions;
    v_token sse_app.refresh_tokens;
    v_account sse_app.accounts;
    v_repeated boolean;
BEGIN
    PERFORM sse_app.wait_for_disk();
    LOCK TABLE sse_app.revoking IN ROW SHARE MODE;
    SELECT s.* INTO v_session FROM sse_app.sessions s
        WHERE s.id = (SELECT t.session FROM sse_app.refresh_tokens t WHERE t.digest = p_digest) FOR UPDATE;
    SELECT t.* INTO v_token FROM sse_app.refresh_tokens t WHERE t.digest = p_digest;  -- as it is by now
    IF v_session.id IS NULL OR v_token.digest IS NULL THEN
        refused := 'unknown';
        RETURN;
    END IF;
    session := v_session.id;
    subject := v_session.subject;
    expires_at := v_session.expires_at;
    seed := coalesce(v_token.seed, p_seed);
    v_repeated := v_token.seed IS NOT NULL AND abs(p_now - v_token.spent_at) <= p_repeatable;
    IF v_session.used_at > p_now AND NOT v_repeated THEN  -- as in sse_app.begin_session
        expires_at := least(expires_at, p_now + p_absolute);
    END IF;
    SELECT a.* INTO v_account FROM sse_app.accounts a WHERE a.name = v_session.subject AND NOT a.disabled;
    grants := v_account.grants;
    IF v_token.spent AND NOT v_repeated THEN
        refused := 'reused';
    ELSIF p_now >= least(expires_at, v_session.used_at + p_idle) THEN
        refused := 'expired';
    ELSIF v_account.name IS NULL THEN
        refused := 'no account';
    END IF;
    IF refused IS NOT NULL THEN
        DELETE FROM sse_app.sessions s WHERE s.id = v_session.id;
        PERFORM sse_app.write_revocation('session', v_session.id, p_never, p_forget_at, p_made_at);
    ELSIF NOT v_repeated THEN
        UPDATE sse_app.refresh_tokens t SET seed = NULL WHERE t.session = v_session.id AND t.seed IS NOT NULL;
        UPDATE sse_app.refresh_tokens t SET spent = true, spent_at = p_now, seed = p_seed WHERE t.digest = p_digest;
        UPDATE sse_app.sessions s SET used_at = p_now, expires_at = spend_refresh_token.expires_at
            WHERE s.id = v_session.id;
        INSERT INTO sse_app.refresh_tokens (digest, session) VALUES (p_next, v_session.id);
        DELETE FROM sse_app.refresh_tokens r WHERE r.digest IN (
            SELECT t.digest FROM sse_app.refresh_tokens t WHERE t.session = v_session.id AND t.spent
            ORDER BY t.seed IS NULL, t.spent_at DESC OFFSET p_kept
        );
    ELSE
        UPDATE sse_app.refresh_tokens t SET spent_at = p_now WHERE t.digest = p_digest;
    END IF;
END $$;
