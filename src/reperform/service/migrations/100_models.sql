-- Which version of the model answers, and which processes are there to answer with it.

CREATE TABLE service.control (
    change bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    from_sequence bigint NOT NULL CHECK (from_sequence > 0),
    champion integer NOT NULL,
    challenger integer CHECK (challenger <> champion),
    process_id text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE service.control IS
    'Which version of the model answers from which event on; the last row is what every process does now.';
COMMENT ON COLUMN service.control.change IS 'Number of the change.';
COMMENT ON COLUMN service.control.from_sequence IS 'First event in the journal that is answered this way.';
COMMENT ON COLUMN service.control.champion IS 'Version in the registry that answers.';
COMMENT ON COLUMN service.control.challenger IS 'Version that scores in shadow; empty: none.';
COMMENT ON COLUMN service.control.process_id IS 'Process that made the change.';
COMMENT ON COLUMN service.control.at IS 'When it was made.';

CREATE TABLE service.processes (
    process_id text PRIMARY KEY,
    is_ready boolean NOT NULL,
    loaded integer[] NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE service.processes IS 'Processes of the service, each with the models that it has in memory.';
COMMENT ON COLUMN service.processes.process_id IS 'Host, number of the process there, and a random part.';
COMMENT ON COLUMN service.processes.is_ready IS 'Whether it answers: a new model waits for those that do.';
COMMENT ON COLUMN service.processes.loaded IS 'Versions of the model that it could answer with.';
COMMENT ON COLUMN service.processes.started_at IS 'When it began.';
COMMENT ON COLUMN service.processes.seen_at IS 'When it last said that it is there.';
