"""How often a key may ask, counted by all processes together.

A key has an allowance of one minute's requests, which refills evenly (the generic cell rate algorithm, ITU-T I.371): it
may use it at once, and then goes on at its even rate.
"""

from reperform.service.database import Connection
from reperform.service.keys import Key

WINDOW_S = 60.0
# One statement, so that two processes never count from the same number. No row comes back from it when it is too much.
TAKE = """
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now, make_interval(secs => %(cost_s)s) AS cost,
    make_interval(secs => %(window_s)s) AS allowance)
INSERT INTO service.rate_counts AS counts (key_id, spent_until)
SELECT %(key_id)s, now + cost FROM clock
ON CONFLICT (key_id) DO UPDATE
SET spent_until = greatest(counts.spent_until, (SELECT now FROM clock)) + (SELECT cost FROM clock)
WHERE greatest(counts.spent_until, (SELECT now FROM clock)) + (SELECT cost - allowance FROM clock)
    <= (SELECT now FROM clock)
RETURNING spent_until
"""
WAIT = """
SELECT extract(epoch FROM spent_until - clock_timestamp()) + %s - %s FROM service.rate_counts WHERE key_id = %s
"""


def within(connection: Connection, key: Key, *, cost: float = 1.0) -> tuple[bool, float]:
    """Whether a key may ask now; if so, the request is counted.

    Args:
        connection: with an open transaction of its own that ends at once, `database.transaction(durable=False)`: all
            requests of a key wait for it.
        key: who asks.
        cost: what it costs, in requests; never more than a minute's allowance.

    Returns:
        Whether it may, and if not, after how many seconds to try again.
    """
    cost_s = min(cost / key.requests_per_minute, 1.0) * WINDOW_S
    values = {"key_id": key.key_id, "cost_s": cost_s, "window_s": WINDOW_S}
    if connection.execute(TAKE, values).fetchone() is not None:
        return True, 0.0
    row = connection.execute(WAIT, [cost_s, WINDOW_S, key.key_id]).fetchone()
    return False, max(float(row[0]) if row else 0.0, 0.001)
