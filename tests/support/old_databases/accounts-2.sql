-- Made by commit b21dcc8: see tests/ops/test_old_databases.py.
BEGIN TRANSACTION;
CREATE TABLE accounts (
        name TEXT PRIMARY KEY, password TEXT NOT NULL, grants TEXT NOT NULL,
        disabled INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL
    ) WITHOUT ROWID;
INSERT INTO "accounts" VALUES('ann','$argon2id$v=19$m=19456,t=2,p=1$qvTivWDohpffFbxNHngkIA$b/nICFZvO/SniqRFvmkCoyDPE4CaPewnNp+VS+Mtz3M','{"subscribe": ["alerts"], "publish": ["alerts", "dashboard"], "admin": false}',0,1.79566169999581933024e+09);
CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, address TEXT NOT NULL, target TEXT NOT NULL, detail TEXT NOT NULL
    );
INSERT INTO "audit" VALUES(1,1.79566169999698758128e+09,'user_added','cli:root','','ann','');
INSERT INTO "audit" VALUES(2,1.7956617004608418941e+09,'login','ann','127.0.0.1','SYpX-lwAQo40S-CR','');
INSERT INTO "audit" VALUES(3,1.79566170118189907074e+09,'revocation','cli:root','','gone-session','session');
CREATE TABLE refresh_tokens (
        digest BLOB PRIMARY KEY, session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        spent INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
INSERT INTO "refresh_tokens" VALUES(X'10BB1E51DA59A1EFD1BD2F4AA78A61238F15287BFEB141B4C991DFBDA73FF1C5','SYpX-lwAQo40S-CR',0);
CREATE TABLE revocations (
        number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, value TEXT NOT NULL,
        issued_until REAL NOT NULL, forget_at REAL NOT NULL
    );
INSERT INTO "revocations" VALUES(1,'session','gone-session',1.12589990684262399999e+15,1.79825370117203283304e+09);
CREATE TABLE sessions (
        id TEXT PRIMARY KEY, subject TEXT NOT NULL,
        created_at REAL NOT NULL, used_at REAL NOT NULL, expires_at REAL NOT NULL
    ) WITHOUT ROWID;
INSERT INTO "sessions" VALUES('SYpX-lwAQo40S-CR','ann',1.79566170044905900953e+09,1.79566170044905900953e+09,1.79825370044905900957e+09);
CREATE INDEX sessions_of_subject ON sessions (subject);
CREATE INDEX refresh_tokens_of_session ON refresh_tokens (session);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('audit',3);
INSERT INTO "sqlite_sequence" VALUES('revocations',1);
COMMIT;
PRAGMA application_id = 1397966145;
PRAGMA user_version = 2;
