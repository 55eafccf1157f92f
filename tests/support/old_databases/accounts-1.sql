-- As version 1 had it: see tests/ops/test_old_databases.py.
BEGIN TRANSACTION;
CREATE TABLE accounts (
        name TEXT PRIMARY KEY, password TEXT NOT NULL, grants TEXT NOT NULL,
        disabled INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL
    ) WITHOUT ROWID;
INSERT INTO "accounts" VALUES('ann','$argon2id$v=19$m=19456,t=2,p=1$qvTivWDohpffFbxNHngkIA$b/nICFZvO/SniqRFvmkCoyDPE4CaPewnNp+VS+Mtz3M','{"subscribe": ["alerts"], "publish": ["alerts", "dashboard"], "admin": false}',0,1.79566169999581933024e+09);
COMMIT;
PRAGMA application_id = 1397966145;
PRAGMA user_version = 1;
