SELECT
    "table",
    rule,
    "column",
    source_file,
    count(*) AS n_rows,
    min(source_record) AS first_record,
    (array_agg(value ORDER BY "position"))[1] AS first_value
FROM quarantine
GROUP BY "table", rule, "column", source_file
ORDER BY n_rows DESC, "table", rule, source_file
