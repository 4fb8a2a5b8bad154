-- Names and types of wide events apart from their values: of a single transaction's KPIs, the names weigh most.

CREATE TABLE service.shapes (
    shape text PRIMARY KEY,
    empty bytea NOT NULL
);
ALTER TABLE service.shapes ALTER COLUMN empty SET STORAGE EXTERNAL;
COMMENT ON TABLE service.shapes IS 'Names and types of columns that events in the journal share.';
COMMENT ON COLUMN service.shapes.shape IS 'SHA-256 of them.';
COMMENT ON COLUMN service.shapes.empty IS 'A table without rows that has them: an Arrow IPC stream, compressed with zstd.';

ALTER TABLE service.journal ADD COLUMN shape text REFERENCES service.shapes (shape);
COMMENT ON COLUMN service.journal.shape IS
    'Where features are stored narrow: the table that they are; all numbers then stand in one column, column by column.';
