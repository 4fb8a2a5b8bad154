SELECT
    rule,
    status,
    measures,
    value,
    warn_limit,
    act_limit,
    compared,
    warned,
    acted,
    names,
    what_to_do
FROM triggers
WHERE status IN ('act', 'warn')
ORDER BY status, rule
