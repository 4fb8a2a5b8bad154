"""Account numbers, merchant codes and transaction references in the style of each institution."""

import numpy as np

from reperform.simulate.draws import Ints, Texts

REFERENCE_BITS = 53
_IBAN_DIGITS = {"DE": 18, "FR": 23, "AT": 16, "NL": 16, "BE": 12, "IE": 18, "GB": 18}
_OUTSIDER_STYLE = {
    "shop": "MER{:07d}",
    "online": "MER{:07d}",
    "atm": "ATM{:06d}",
    "branch": "BRN{:05d}",
    "acquirer": "ACQ{:05d}",
    "biller": "BIL{:06d}",
}


def iban(country: str, number: int) -> str:
    """An account number with correct check digits (ISO 13616, MOD 97-10); the national part is invented."""
    length = _IBAN_DIGITS.get(country, 18)
    national = f"{number:0{length}d}"[-length:]
    check = 98 - int(f"{national}{ord(country[0]) - 55}{ord(country[1]) - 55}00") % 97
    return f"{country}{check:02d}{national}"


def account_ids(names: list[str], institution: Ints, country: Texts, rng: np.random.Generator) -> Texts:
    """An identifier for each account, unique in the world.

    Args:
        names: institutions.
        institution: index into names, per account.
        country: of each account's owner.
        rng: the stream to draw numbers from.
    """
    number = rng.permutation(9_000_000)[: institution.size] + 1_000_000
    rows = zip(institution.tolist(), country.tolist(), number.tolist(), strict=True)
    return np.array([_account_id(names[i], c, n) for i, c, n in rows])


def _account_id(name: str, country: str, number: int) -> str:
    match name:
        case "northbank":
            return f"NB-{number:08d}"
        case "harbour":
            # Leading zeros are part of the number: a reader that takes it for an integer loses them.
            return f"00{number:08d}"
        case "summit":
            return f"021-{number:07d}-{number % 9}"
        case "lakeside" | "meadow" | "castle" | "valley":
            return iban(country, int(f"{_bank_code(name)}{number:010d}"))
        case _:
            return f"{name}-{number:08d}"


def _bank_code(name: str) -> int:
    return 100 + sum(map(ord, name)) % 800


def outsider_ids(kind: Texts, country: Texts, rng: np.random.Generator) -> Texts:
    """An identifier for each outsider: codes for shops and machines, account numbers elsewhere for people and firms."""
    number = rng.permutation(90_000)[: kind.size] + 10_000
    if number.size < kind.size:
        number = rng.permutation(9_000_000)[: kind.size] + 10_000
    rows = zip(kind.tolist(), country.tolist(), number.tolist(), strict=True)
    return np.array([_outsider_id(k, c, n) for k, c, n in rows])


def _outsider_id(kind: str, country: str, number: int) -> str:
    style = _OUTSIDER_STYLE.get(kind)
    return style.format(number) if style else iban(country, 7_000_000_000 + number * 37)


def references(names: list[str], institution: Ints, number: Ints) -> list[str]:
    """Transaction references; random numbers, so that they tell nothing about order or origin.

    Args:
        names: institutions.
        institution: index into names, per row.
        number: below 2**53, per row.
    """
    styles = [_REFERENCE_STYLE.get(name, name[:3].upper() + "{:014X}") for name in names]
    rows = zip(institution.tolist(), number.tolist(), strict=True)
    return [styles[i].format(n) for i, n in rows]


_REFERENCE_STYLE = {
    "northbank": "NB{:014X}",
    "lakeside": "{:016d}",
    "harbour": "hb{:014x}",
    "summit": "SU-{:016d}",
    "meadow": "MDW{:014X}",
    "castle": "CST{:014X}",
    "valley": "VAL{:014X}",
}
