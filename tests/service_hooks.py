"""Lets good requests of schemathesis through what no schema can say: accounts and times that are known."""

import os
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import schemathesis

NUMBERS = count()
ACCOUNTS = os.environ["TESTS_ACCOUNTS"].split(",")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Put known accounts and the present into transactions that follow the schema."""
    if case.meta is None or not case.meta.generation.mode.is_positive or not isinstance(case.body, dict):
        return
    if "Idempotency-Key" in (case.headers or {}):
        case.headers["Idempotency-Key"] = f"key-{next(NUMBERS)}"
    booked_at = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    for one in case.body.get("transactions", []):
        one["transaction_id"] = f"{one['transaction_id'][:150]}-{next(NUMBERS)}"
        account = ACCOUNTS[len(one["account_id"]) % len(ACCOUNTS)]
        one |= {"account_id": account, "currency": "EUR", "booked_at": booked_at}
        one["amount"] = min(max(one["amount"], 0.01), 1e9)
        for name in ("entity_id", "known_at", "country", "latitude", "longitude", "amount_base"):
            one.pop(name, None)
