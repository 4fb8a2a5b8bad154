SELECT *
FROM triggers
WHERE status <> 'ok'
ORDER BY status, "position"
