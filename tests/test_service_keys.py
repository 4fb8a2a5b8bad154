"""Keys open what they were given for, no longer than that, and no oftener; nobody can read one out of the database."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from reperform.__main__ import main
from reperform.errors import ReperformError
from reperform.export import server
from reperform.service import keys, limits
from reperform.service.database import Database
from reperform.service.keys import Key, KeyExpired, KeyRevoked, KeyUnknown


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the few seconds in which changes may go unseen."""
    monkeypatch.setattr(keys, "CACHE_S", 0.0)


# --- who may ask ---


def test_a_key_is_known_by_its_secret(database: Database) -> None:
    made, secret = keys.create(database, "bank", ["read", "score"], days=30)
    assert keys.FORM.fullmatch(secret)
    assert keys.checked(database, secret) == made
    assert made.scopes == {"read", "score"}
    assert made.opens("score")
    assert not made.opens("admin")
    assert made.expires_at is not None
    assert timedelta(days=29) < made.expires_at - datetime.now(UTC) <= timedelta(days=30)


def test_admin_opens_everything_and_a_key_may_live_without_end(database: Database) -> None:
    made, _ = keys.create(database, "ann", ["admin"], days=None)
    assert all(made.opens(scope) for scope in keys.SCOPES)
    assert made.expires_at is None


def test_no_secret_stands_in_the_database(database: Database) -> None:
    _, secret = keys.create(database, "bank", ["read"])
    with database.transaction() as connection:
        stored = str(connection.execute("SELECT * FROM service.api_keys").fetchall())
    assert secret not in stored
    assert secret.split("_", 2)[2] not in stored
    assert "sha256" not in str(keys.listed(database))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda secret: secret[:-1] + ("a" if secret[-1] != "a" else "b"),
        lambda secret: "rpf_" + "0" * 12 + secret[16:],
        lambda secret: secret + "a",
        lambda secret: secret + "\n",
        lambda secret: secret.upper(),
        lambda secret: "rpf_'; DROP TABLE service.api_keys; --",
        lambda secret: "ü" * 60,
        lambda secret: "",
    ],
)
def test_a_wrong_key_is_unknown(database: Database, spoil: Callable[[str], str]) -> None:
    _, secret = keys.create(database, "bank", ["read"])
    with pytest.raises(KeyUnknown, match="not known") as caught:
        keys.checked(database, spoil(secret))
    assert secret not in str(caught.value)
    assert keys.checked(database, secret)


def test_an_expired_key_says_so_but_only_to_its_holder(database: Database) -> None:
    made, secret = keys.create(database, "bank", ["read"], days=0.1 / 86_400)
    time.sleep(0.15)
    with pytest.raises(KeyExpired, match="has expired"):
        keys.checked(database, secret)
    with pytest.raises(KeyUnknown):
        keys.checked(database, secret[:-3] + "AAA")
    assert keys.listed(database)[0]["state"] == "expired"
    with pytest.raises(ReperformError, match="is over"):
        keys.rotate(database, made.key_id)


def test_a_revoked_key_opens_nothing(database: Database) -> None:
    made, secret = keys.create(database, "bank", ["read"])
    keys.revoke(database, made.key_id)
    keys.revoke(database, made.key_id)
    with pytest.raises(KeyRevoked, match="revoked"):
        keys.checked(database, secret)
    with pytest.raises(ReperformError, match="is over"):
        keys.rotate(database, made.key_id)


def test_a_rotated_key_takes_the_old_secret_for_a_while(database: Database) -> None:
    made, old = keys.create(database, "bank", ["read"])
    again, new = keys.rotate(database, made.key_id, grace=timedelta(seconds=0.5))
    assert again == made
    assert keys.checked(database, old) == keys.checked(database, new) == made
    time.sleep(0.6)
    with pytest.raises(KeyUnknown):
        keys.checked(database, old)
    assert keys.checked(database, new) == made


def test_a_key_that_leaked_is_rotated_without_grace(database: Database) -> None:
    made, old = keys.create(database, "bank", ["read"])
    _, new = keys.rotate(database, made.key_id, grace=timedelta(0))
    with pytest.raises(KeyUnknown):
        keys.checked(database, old)
    assert keys.checked(database, new) == made


def test_other_processes_see_a_change_when_their_memory_has_faded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CACHE_S", 0.3)
    other = Database(database.address)
    made, secret = keys.create(database, "bank", ["read"])
    assert keys.checked(other, secret) == made
    keys.revoke(database, made.key_id)
    assert keys.checked(other, secret) == made  # from memory
    time.sleep(0.35)
    with pytest.raises(KeyRevoked):
        keys.checked(other, secret)
    other.close()


def test_made_up_keys_do_not_fill_the_memory(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "CACHED", 10)
    for number in range(25):
        with pytest.raises(KeyUnknown):
            keys.checked(database, f"rpf_{number:012x}_{'A' * 43}")
    assert len(keys._CACHES[database]._rows) <= 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": " "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"scopes": []}, "no scope"),
        ({"scopes": ["read", "root"]}, "scope 'root'"),
        ({"days": -1}, "-1 days"),
        ({"days": float("nan")}, "nan days"),
        ({"requests_per_minute": 0}, "0 requests"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(database: Database, given: dict[str, object], said: str) -> None:
    with pytest.raises(ReperformError, match=said):
        keys.create(database, **{"name": "bank", "scopes": ["read"], **given})  # type: ignore[arg-type]
    assert keys.listed(database) == []


def test_unknown_ids_are_explained(database: Database) -> None:
    for change in (keys.revoke, keys.rotate):
        with pytest.raises(ReperformError, match=r"no such key[\s\S]*keys list"):
            change(database, "nobody")


# --- how often ---


def some_key(requests_per_minute: int, key_id: str = "0" * 12) -> Key:
    return Key(key_id, "bank", frozenset({"read"}), None, requests_per_minute)


def asked(database: Database, key: Key, cost: float = 1.0) -> tuple[bool, float]:
    with database.transaction(durable=False) as connection:
        return limits.within(connection, key, cost=cost)


def test_the_allowance_of_a_minute_may_be_used_at_once_and_by_all_processes_together(database: Database) -> None:
    other = Database(database.address)
    key = some_key(10)
    assert [asked(one, key)[0] for one in (database, other) * 5] == [True] * 10
    refused, wait_s = asked(other, key)
    assert not refused
    assert 0 < wait_s <= 6.0  # a tenth of a minute
    assert asked(database, some_key(10, "1" * 12)) == (True, 0.0)
    other.close()


def test_the_allowance_comes_back_evenly(database: Database) -> None:
    key = some_key(10)
    for _ in range(10):
        asked(database, key)
    move(database, seconds=5.5)
    assert not asked(database, key)[0]
    move(database, seconds=1)
    assert asked(database, key)[0]
    assert not asked(database, key)[0]
    move(database, seconds=3_600)  # no more than a minute's requests are saved up
    assert [asked(database, key)[0] for _ in range(11)] == [True] * 10 + [False]


def move(database: Database, seconds: float) -> None:
    """Let time pass."""
    with database.transaction() as connection:
        connection.execute(
            "UPDATE service.rate_counts SET spent_until = spent_until - make_interval(secs => %s)", [seconds]
        )


def test_what_costs_more_is_allowed_less_often_and_never_more_than_everything(database: Database) -> None:
    key = some_key(10)
    assert asked(database, key, cost=4)[0]
    assert asked(database, key, cost=4)[0]
    refused, wait_s = asked(database, key, cost=4)
    assert not refused
    assert 10 < wait_s <= 12
    assert asked(database, some_key(10, "1" * 12), cost=1_000)[0]
    assert not asked(database, some_key(10, "1" * 12))[0]


def test_waiting_as_long_as_told_is_enough(database: Database) -> None:
    key = some_key(600)
    assert asked(database, key, cost=600)[0]
    allowed, wait_s = asked(database, key)
    assert not allowed
    time.sleep(wait_s)
    assert asked(database, key)[0]


# --- on the command line ---


@pytest.fixture
def command(database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    parameters = database.address.parameters
    url = " ".join(f"{name}={value}" for name, value in parameters.items() if name != "connect_timeout")
    monkeypatch.setenv(server.ADDRESS_VARIABLE, url)
    return lambda *words: main(["keys", *words])


def test_keys_are_handled_on_the_command_line(
    command: Callable[..., int], database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("list") == 0
    assert "no keys yet" in capsys.readouterr().out
    assert command("create", "Bank of Wonder", "--scopes", "score, read", "--per-minute", "60") == 0
    told, secret = capsys.readouterr().out.splitlines()
    key = keys.checked(database, secret)
    assert (key.name, key.scopes, key.requests_per_minute) == ("Bank of Wonder", {"score", "read"}, 60)
    assert told.startswith(f"key {key.key_id} for Bank of Wonder: read, score; until 20")
    assert command("rotate", key.key_id, "--grace-hours", "0") == 0
    new = capsys.readouterr().out.splitlines()[-1]
    assert keys.checked(database, new) == key
    assert command("revoke", key.key_id) == 0
    assert command("list") == 0
    out = capsys.readouterr().out
    assert f"{key.key_id}  revoked" in out
    assert secret not in out
    assert new not in out
    assert command("revoke", "x") == 1
    assert "no such key" in capsys.readouterr().err
