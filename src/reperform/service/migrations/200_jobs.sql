-- Files that are scored in the background.

CREATE TABLE service.jobs (
    job_id text PRIMARY KEY CHECK (job_id ~ '^[0-9a-f]{64}$'),
    source text,
    format text NOT NULL CHECK (format IN ('csv', 'parquet', 'camt.053')),
    data_version text NOT NULL,
    sha256 text NOT NULL,
    size_bytes bigint NOT NULL,
    key_id text,
    status text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'running', 'done', 'failed')),
    n_records bigint,
    n_left_out bigint NOT NULL DEFAULT 0,
    n_to_score bigint NOT NULL DEFAULT 0,
    n_scored bigint NOT NULL DEFAULT 0,
    n_known bigint NOT NULL DEFAULT 0,
    n_refused bigint NOT NULL DEFAULT 0,
    n_alerts bigint NOT NULL DEFAULT 0,
    n_late bigint NOT NULL DEFAULT 0,
    problem text,
    attempts integer NOT NULL DEFAULT 0,
    worker text,
    lease_until timestamptz,
    not_before timestamptz NOT NULL DEFAULT clock_timestamp(),
    submitted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    read_at timestamptz,
    ended_at timestamptz,
    -- Nothing may be lost: a job is done when every record is accounted for, and never before.
    CONSTRAINT every_record_accounted_for
        CHECK (status <> 'done' OR n_records = n_scored + n_known + n_refused + n_left_out)
);
CREATE INDEX open_jobs ON service.jobs (not_before) WHERE status IN ('waiting', 'running');

COMMENT ON TABLE service.jobs IS 'Files that were handed in, and how far they are.';
COMMENT ON COLUMN service.jobs.job_id IS
    'SHA-256 over the file''s content, its source and the description of it, its format and the version of the data.';
COMMENT ON COLUMN service.jobs.source IS 'Source in conf/ingest/ by whose description the file is read.';
COMMENT ON COLUMN service.jobs.format IS 'How the file is written.';
COMMENT ON COLUMN service.jobs.data_version IS 'Version of the data that the service began with.';
COMMENT ON COLUMN service.jobs.sha256 IS 'SHA-256 of the file as it was handed in.';
COMMENT ON COLUMN service.jobs.size_bytes IS 'Size of the file as it was handed in.';
COMMENT ON COLUMN service.jobs.key_id IS 'API key of who handed it in first.';
COMMENT ON COLUMN service.jobs.status IS 'waiting, running, done, or failed with its reason in `problem`.';
COMMENT ON COLUMN service.jobs.n_records IS 'Records in the file; empty until it was read.';
COMMENT ON COLUMN service.jobs.n_left_out IS 'Records that the source''s own description leaves out.';
COMMENT ON COLUMN service.jobs.n_to_score IS 'Records that reading and rules let pass.';
COMMENT ON COLUMN service.jobs.n_scored IS 'Transactions that this job has scored.';
COMMENT ON COLUMN service.jobs.n_known IS 'Transactions that were known before: their first answer stands.';
COMMENT ON COLUMN service.jobs.n_refused IS 'Records in the job''s quarantine.';
COMMENT ON COLUMN service.jobs.n_alerts IS 'Alerts among the transactions that this job has scored.';
COMMENT ON COLUMN service.jobs.n_late IS
    'Of those scored, how many came after later transactions had been answered, which did not know of them.';
COMMENT ON COLUMN service.jobs.problem IS 'What went wrong last, and what to do.';
COMMENT ON COLUMN service.jobs.attempts IS 'Attempts since it last went forward.';
COMMENT ON COLUMN service.jobs.worker IS 'Who works on it.';
COMMENT ON COLUMN service.jobs.lease_until IS 'When others may take it over, unless the worker says that it lives.';
COMMENT ON COLUMN service.jobs.not_before IS 'When it may be tried next.';
COMMENT ON COLUMN service.jobs.submitted_at IS 'When it was handed in.';
COMMENT ON COLUMN service.jobs.read_at IS 'When the file had been read.';
COMMENT ON COLUMN service.jobs.ended_at IS 'When it was done or given up.';

CREATE TABLE service.job_files (
    job_id text NOT NULL REFERENCES service.jobs ON DELETE CASCADE,
    part integer NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (job_id, part)
);
ALTER TABLE service.job_files ALTER COLUMN content SET STORAGE EXTERNAL;

COMMENT ON TABLE service.job_files IS 'Files of jobs that are not done yet, in parts.';
COMMENT ON COLUMN service.job_files.job_id IS 'The job.';
COMMENT ON COLUMN service.job_files.part IS 'Place of the part, from 0.';
COMMENT ON COLUMN service.job_files.content IS 'Bytes as they were handed in.';

CREATE TABLE service.job_chunks (
    job_id text NOT NULL REFERENCES service.jobs ON DELETE CASCADE,
    chunk integer NOT NULL,
    first_place bigint NOT NULL,
    n integer NOT NULL,
    rows bytea,
    PRIMARY KEY (job_id, chunk)
);
ALTER TABLE service.job_chunks ALTER COLUMN rows SET STORAGE EXTERNAL;

COMMENT ON TABLE service.job_chunks IS 'Rows of a file that was read, in order of known_at, as they are scored together.';
COMMENT ON COLUMN service.job_chunks.job_id IS 'The job.';
COMMENT ON COLUMN service.job_chunks.chunk IS 'Place of the chunk, from 0.';
COMMENT ON COLUMN service.job_chunks.first_place IS 'Place of its first row among all rows of the job, from 0.';
COMMENT ON COLUMN service.job_chunks.n IS 'How many rows.';
COMMENT ON COLUMN service.job_chunks.rows IS
    'Canonical transactions: an Arrow IPC stream, compressed with zstd; empty when they are answered.';

CREATE TABLE service.job_results (
    job_id text NOT NULL REFERENCES service.jobs ON DELETE CASCADE,
    place bigint NOT NULL,
    transaction_id text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('scored', 'known')),
    is_late boolean NOT NULL,
    PRIMARY KEY (job_id, place)
);

COMMENT ON TABLE service.job_results IS 'Transactions of a job in order of known_at; what was answered is in `answers`.';
COMMENT ON COLUMN service.job_results.job_id IS 'The job.';
COMMENT ON COLUMN service.job_results.place IS 'Place among the rows that passed the rules, from 0.';
COMMENT ON COLUMN service.job_results.transaction_id IS 'The transaction.';
COMMENT ON COLUMN service.job_results.outcome IS 'scored: by this job; known: it was known before, and not scored again.';
COMMENT ON COLUMN service.job_results.is_late IS
    'Whether later transactions had been answered before it was scored: their answers did not know of it.';

CREATE TABLE service.job_quarantine (
    job_id text NOT NULL REFERENCES service.jobs ON DELETE CASCADE,
    place bigint NOT NULL,
    rule text NOT NULL,
    reason text NOT NULL,
    source_file text NOT NULL,
    source_record bigint NOT NULL,
    "column" text,
    value text,
    "row" text NOT NULL,
    PRIMARY KEY (job_id, place)
);

COMMENT ON TABLE service.job_quarantine IS 'Records of a job that were refused, each with its reason.';
COMMENT ON COLUMN service.job_quarantine.job_id IS 'The job.';
COMMENT ON COLUMN service.job_quarantine.place IS 'Place in the job''s quarantine, from 0.';
COMMENT ON COLUMN service.job_quarantine.rule IS 'Rule that refused it.';
COMMENT ON COLUMN service.job_quarantine.reason IS 'What the rule asks for.';
COMMENT ON COLUMN service.job_quarantine.source_file IS 'Name of the file (and of a member of a zip).';
COMMENT ON COLUMN service.job_quarantine.source_record IS 'Number of the record in it, from 1.';
COMMENT ON COLUMN service.job_quarantine."column" IS 'Column that the rule blames.';
COMMENT ON COLUMN service.job_quarantine.value IS 'Its value.';
COMMENT ON COLUMN service.job_quarantine."row" IS 'The record as text.';

CREATE VIEW service.v_jobs AS
SELECT job_id, source, format, status, n_records, n_to_score, n_scored, n_known, n_refused, n_left_out, n_alerts, n_late,
    round(100.0 * (n_scored + n_known + n_refused + n_left_out) / nullif(n_records, 0), 1) AS percent,
    problem, submitted_at, ended_at
FROM service.jobs;
COMMENT ON VIEW service.v_jobs IS 'Files that were handed in, and how far they are.';
COMMENT ON COLUMN service.v_jobs.job_id IS 'The job.';
COMMENT ON COLUMN service.v_jobs.source IS 'Source in conf/ingest/ by whose description the file is read.';
COMMENT ON COLUMN service.v_jobs.format IS 'How the file is written.';
COMMENT ON COLUMN service.v_jobs.status IS 'waiting, running, done, or failed with its reason in `problem`.';
COMMENT ON COLUMN service.v_jobs.n_records IS 'Records in the file; empty until it was read.';
COMMENT ON COLUMN service.v_jobs.n_to_score IS 'Records that reading and rules let pass.';
COMMENT ON COLUMN service.v_jobs.n_scored IS 'Transactions that this job has scored.';
COMMENT ON COLUMN service.v_jobs.n_known IS 'Transactions that were known before: their first answer stands.';
COMMENT ON COLUMN service.v_jobs.n_refused IS 'Records in the job''s quarantine.';
COMMENT ON COLUMN service.v_jobs.n_left_out IS 'Records that the source''s own description leaves out.';
COMMENT ON COLUMN service.v_jobs.n_alerts IS 'Alerts among the transactions that this job has scored.';
COMMENT ON COLUMN service.v_jobs.n_late IS 'Of those scored, how many came after later transactions had been answered.';
COMMENT ON COLUMN service.v_jobs.percent IS 'Of its records, how many are settled.';
COMMENT ON COLUMN service.v_jobs.problem IS 'What went wrong last, and what to do.';
COMMENT ON COLUMN service.v_jobs.submitted_at IS 'When it was handed in.';
COMMENT ON COLUMN service.v_jobs.ended_at IS 'When it was done or given up.';
