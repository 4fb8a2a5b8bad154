"""Kinds of defect that feeds really have, each planted by itself into the raw files of a clean world."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from reperform.defects.raw_tables import World, moved, new_ids, scaled

ISO, GERMAN = "%Y-%m-%dT%H:%M:%SZ", "%d.%m.%Y %H:%M:%S"
NORTH, LAKE, HARBOUR, SUMMIT = "northbank", "lakeside", "harbour", "summit"
DAY = "2025-03-19"  # a Wednesday without pay
Plant = Callable[[World], str]


@dataclass(frozen=True)
class Defect:
    """One kind of defect.

    Args:
        name: of the kind.
        says: what the sender did.
        rules: checks that name the right thing; any of them counts, no other does.
        plant: spoils a raw folder, and returns the file (or a part of its name) that a finding has to name.
        error: words that the error must contain, where the right answer is to stop.
    """

    name: str
    says: str
    rules: tuple[str, ...]
    plant: Plant
    error: str = ""


DEFECTS: list[Defect] = []


def _defect(says: str, *rules: str, error: str = "") -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        DEFECTS.append(Defect(plant.__name__.removeprefix("_"), says, rules, plant, error))
        return plant

    return register


@_defect("all times three hours late", "time_zone_shift")
def _zone_three_hours(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, *moved(["booked_at", "received_at"], ISO, hours=3))
    return file


@_defect("summer time applied twice: all times one hour late", "time_zone_shift")
def _zone_one_hour(world: World) -> str:
    file = world.file(LAKE)
    world.change(file, *moved(["Buchung", "Eingang"], GERMAN, hours=1))
    return file


@_defect("amounts in thousandths", "amount_scale")
def _unit_thousand(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, scaled("amount", 1000))
    return file


@_defect("minor units multiplied once more", "amount_scale")
def _unit_hundred(world: World) -> str:
    file = world.file(HARBOUR)
    world.change(file, (pl.col("minor_units") + "00").alias("minor_units"))
    return file


@_defect("whole euros where minor units are agreed", "amount_scale")
def _unit_hundredth(world: World) -> str:
    file = world.file(HARBOUR)
    whole = pl.col("minor_units").cast(pl.Int64)
    shrunk = (whole.abs() // 100).clip(lower_bound=1) * whole.sign()
    world.change(file, shrunk.cast(pl.String).alias("minor_units"))
    return file


@_defect("thousandths on a single day", "amount_scale")
def _unit_on_one_day(world: World) -> str:
    file = world.file(NORTH)
    rows = world.read(file)
    there = pl.col("booked_at").str.starts_with(DAY)
    world.write(
        file, rows.with_columns(pl.when(there).then(scaled("amount", 1000)).otherwise("amount").alias("amount"))
    )
    return file


@_defect("decimal comma lost: 5,18 becomes 518", "amount_scale")
def _comma_lost(world: World) -> str:
    file = world.file(LAKE)
    world.change(file, *(pl.col(name).str.replace(",", "", literal=True) for name in ("Soll", "Haben")))
    return file


@_defect("decimal point where a comma is agreed", "records_refused")
def _point_for_comma(world: World) -> str:
    file = world.file(LAKE)
    world.change(
        file,
        *(
            pl.col(name).str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
            for name in ("Soll", "Haben")
        ),
    )
    return file


@_defect("decimal comma where a point is agreed", "records_refused")
def _comma_for_point(world: World) -> str:
    file = world.file(SUMMIT)
    world.change(file, pl.col("Amount").str.replace_all(",", "", literal=True).str.replace(".", ",", literal=True))
    return file


@_defect("signs turned round", "direction_flipped")
def _sign_flip(world: World) -> str:
    file = world.file(HARBOUR)
    world.change(file, (-pl.col("minor_units").cast(pl.Int64)).cast(pl.String).alias("minor_units"))
    return file


@_defect("debit and credit columns exchanged", "direction_flipped")
def _debit_credit_swapped(world: World) -> str:
    file = world.file(LAKE)
    world.change(file, pl.col("Haben").alias("Soll"), pl.col("Soll").alias("Haben"))
    return file


@_defect("account and counterparty exchanged", "columns_swapped")
def _account_counterparty_swapped(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, pl.col("counterparty").alias("account"), pl.col("account").alias("counterparty"))
    return file


@_defect("latitude and longitude exchanged", "coordinates_swapped")
def _coordinates_swapped(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, pl.col("longitude").alias("latitude"), pl.col("latitude").alias("longitude"))
    return file


@_defect("booking and receipt exchanged", "times_swapped")
def _times_swapped(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, pl.col("received_at").alias("booked_at"), pl.col("booked_at").alias("received_at"))
    return file


@_defect("counterparties left out", "completeness_drop")
def _counterparty_dropped(world: World) -> str:
    file = world.file(SUMMIT)
    world.change(file, pl.lit(None, pl.String).alias("Other Party"))
    return file


@_defect("balances left out", "completeness_drop")
def _balance_dropped(world: World) -> str:
    file = world.file(HARBOUR)
    world.change(file, pl.lit(None, pl.String).alias("bal_minor"))
    return file


@_defect("a month delivered again under new ids", "duplicate_feed")
def _duplicate_feed(world: World) -> str:
    file = world.file(NORTH, "2025-03-again")
    world.write(file, world.read(world.file(NORTH)).with_columns(new_ids("id", "D")))
    return "northbank/transactions-2025-03"  # of two deliveries, either may be called the second


@_defect("the same file under another name", "file_delivered_twice")
def _same_file_twice(world: World) -> str:
    file = world.file(NORTH, "2025-03-again")
    world.write_bytes(file, (world.raw / world.file(NORTH)).read_bytes())
    return "northbank/transactions-2025-03"


@_defect("last month's rows at the head of this month's", "rows_delivered_twice")
def _overlapping_files(world: World) -> str:
    file = world.file(NORTH)
    world.write(file, pl.concat([world.read(world.file(NORTH, "2025-02")).tail(60), world.read(file)]))
    return file


@_defect("the transfer stopped in the middle of a record", "truncated_file", "file_unreadable", error="cut off")
def _truncated(world: World) -> str:
    file = world.file(NORTH)
    content = (world.raw / file).read_bytes()
    cut = content.rindex(b"\n", 0, len(content) * 6 // 10) + 25
    world.write_bytes(file, content[:cut])
    return file


@_defect("a compressed file stopped in the middle", "file_unreadable", error="harbour/transactions-2025-03.csv.gz")
def _truncated_gzip(world: World) -> str:
    file = world.file(HARBOUR)
    content = (world.raw / file).read_bytes()
    world.write_bytes(file, content[: len(content) // 2])
    return file


@_defect("one day left out of a month", "missing_day")
def _missing_day(world: World) -> str:
    file = world.file(LAKE)
    world.write(file, world.read(file).filter(~pl.col("Buchung").str.starts_with("19.03.2025")))
    return file


@_defect("one daily statement never came", "missing_day")
def _missing_statement(world: World) -> str:
    (world.raw / f"castle/statement-{DAY}.xml").unlink()
    return "castle/statement-2025-03"


@_defect("the last five daily statements are missing", "feed_ended_early")
def _ended_early(world: World) -> str:
    for path in sorted((world.raw / "castle").glob("statement-*.xml"))[-5:]:
        path.unlink()
    return ""


@_defect("last month's file with new ids and this month's dates", "stale_file")
def _stale_file(world: World) -> str:
    file = world.file(NORTH)
    old = world.read(world.file(NORTH, "2025-02"))
    world.write(file, old.with_columns(new_ids("id", "S"), *moved(["booked_at", "received_at"], ISO, days=28)))
    return file


@_defect("nine of ten rows of a day lost", "volume_drop")
def _volume_drop(world: World) -> str:
    file = world.file(NORTH)
    rows = world.read(file).with_row_index("place")
    world.write(
        file, rows.filter(~pl.col("booked_at").str.starts_with(DAY) | (pl.col("place") % 10 == 0)).drop("place")
    )
    return file


@_defect("a day's rows five times, a second apart, under new ids", "volume_surge")
def _volume_surge(world: World) -> str:
    file = world.file(NORTH)
    rows = world.read(file)
    day = rows.filter(pl.col("booked_at").str.starts_with(DAY))
    more = [
        day.with_columns(new_ids("id", f"R{n}"), *moved(["booked_at", "received_at"], ISO, seconds=n))
        for n in range(1, 5)
    ]
    world.write(file, pl.concat([rows, *more]))
    return file


@_defect("names written in UTF-8, taken for Windows-1252, written again", "mojibake")
def _mojibake(world: World) -> str:
    file = world.file(NORTH)
    spoiled = "Bäckerei Grün".encode().decode("cp1252")
    world.change_some(file, 0.05, pl.lit(spoiled).alias("counterparty"))
    return file


@_defect("letters that could not be written became U+FFFD", "mojibake")
def _replacement_characters(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(file, 0.05, pl.lit("B\ufffdckerei Gr\ufffdn").alias("counterparty"))
    return file


@_defect("a file in UTF-8 where Latin-1 is agreed", "file_unreadable", error="has no column")
def _other_encoding(world: World) -> str:
    file = world.file(LAKE)
    world.write_text(file, world.text(file), encoding="utf-8")
    return file


@_defect("(null) for a missing counterparty", "null_words")
def _null_word(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(file, 0.05, pl.lit("(null)").alias("counterparty"))
    return file


@_defect("N/A for a missing place", "null_words")
def _not_available(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, *(pl.col(name).fill_null("N/A") for name in ("latitude", "longitude")))
    return file


@_defect("one default channel in every row", "constant_column")
def _constant_channel(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, pl.lit("card").alias("channel"))
    return file


@_defect("outgoing amounts negative beside a column of directions", "negative_amounts")
def _negative_amounts(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(file, 0.02, (pl.lit("-") + pl.col("amount")).alias("amount"))
    return file


@_defect("the account as its own counterparty", "not_to_itself")
def _self_transfers(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(file, 0.03, pl.col("account").alias("counterparty"))
    return file


@_defect("another currency code over the same amounts", "currency_changed")
def _currency_changed(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, pl.lit("USD").alias("currency"))
    return file


@_defect("a currency that does not exist", "records_refused")
def _unknown_currency(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(file, 0.02, pl.lit("EUX").alias("currency"))
    return file


@_defect("channels renamed", "channel_changed")
def _channels_renamed(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, ("CH_" + pl.col("channel").str.to_uppercase()).alias("channel"))
    return file


@_defect("countries in small letters", "country_style")
def _country_lower(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, pl.col("country").str.to_lowercase())
    return file


@_defect("countries in three letters", "country_style")
def _country_three_letters(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(file, 0.04, pl.col("country").replace({"NL": "NLD", "BE": "BEL", "DE": "DEU", "FR": "FRA"}))
    return file


@_defect("an empty time became the epoch", "implausible_date")
def _epoch_zero(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(file, 0.01, pl.lit("1970-01-01T00:00:00Z").alias("booked_at"))
    return file


@_defect("years in the future", "implausible_date")
def _future(world: World) -> str:
    file = world.file(NORTH)
    later = [pl.col(name).str.replace("^2025", "2052") for name in ("booked_at", "received_at")]
    world.change_some(file, 0.01, *later)
    return file


@_defect("dates without times", "times_rounded")
def _rounded_to_day(world: World) -> str:
    file = world.file(LAKE)
    world.change(file, (pl.col("Buchung").str.head(10) + " 00:00:00").alias("Buchung"))
    return file


@_defect("times without minutes and seconds", "times_rounded")
def _rounded_to_hour(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, (pl.col("booked_at").str.head(13) + ":00:00Z").alias("booked_at"))
    return file


@_defect("some rows booked days after they were received", "known_after_booking")
def _booked_after_known(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(file, 0.02, *moved(["booked_at"], ISO, days=8))
    return file


@_defect("ids went through a spreadsheet", "ids_scientific")
def _scientific_ids(world: World) -> str:
    file = world.file(LAKE)
    world.change(
        file,
        pl.col("Buchungsnummer").map_elements(lambda text: f"{float(text):.5E}", pl.String).alias("Buchungsnummer"),
    )
    return file


@_defect("leading zeros of accounts lost in a spreadsheet", "ids_respelled")
def _leading_zeros_lost(world: World) -> str:
    file = world.file(HARBOUR)
    world.change(file, pl.col("acct").str.strip_chars_start("0"))
    return file


@_defect("accounts as they are printed, in groups of four", "ids_respelled")
def _grouped_ids(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(
        file, 0.04, (pl.col("account").str.head(7) + " " + pl.col("account").str.slice(7)).alias("account")
    )
    return file


@_defect("counterparties in small letters", "ids_respelled")
def _lower_case_ids(world: World) -> str:
    file = world.file(NORTH)
    world.change(file, pl.col("counterparty").str.to_lowercase())
    return file


@_defect("two files joined with both headers", "header_repeated")
def _header_repeated(world: World) -> str:
    file = world.file(NORTH)
    lines = world.text(file).splitlines(keepends=True)
    half = len(lines) // 2
    world.write_text(file, "".join([*lines[:half], lines[0], *lines[half:]]))
    return file


@_defect("a total at the end", "total_row")
def _total_row(world: World) -> str:
    file = world.file(NORTH)
    world.write_text(file, world.text(file) + "Total,,,,123456.78,EUR,,,,,,,\n")
    return file


@_defect("accounts left out of the list", "account_known")
def _unknown_accounts(world: World) -> str:
    rows = world.read(f"{NORTH}/accounts.csv")
    world.write(f"{NORTH}/accounts.csv", rows.filter(~world.some(rows.height, 0.03)))
    return f"{NORTH}/transactions"


@_defect("balances stand still from the middle of the month", "balance_rolls")
def _balance_stops(world: World) -> str:
    file = world.file(NORTH)
    rows = world.read(file)
    there = pl.col("booked_at").str.slice(0, 10) > DAY
    frozen = pl.col("balance").last().over("account")
    world.write(file, rows.with_columns(pl.when(there).then(frozen).otherwise("balance").alias("balance")))
    return file


@_defect("every row of a day labelled in bulk", "label_flood")
def _label_flood(world: World) -> str:
    rows = world.read("labels.csv")
    ids = (
        world.read(world.file(NORTH, "2025-02")).filter(~pl.col("id").is_in(rows["transaction_id"].implode())).head(250)
    )
    flood = ids.select(
        transaction_id="id",
        is_anomaly=pl.lit("true"),
        typology=pl.lit(None, pl.String),
        confirmed_at=pl.lit("2025-03-20T10:00:00Z"),
    )
    world.write("labels.csv", pl.concat([rows, flood]))
    return "labels.csv"


@_defect("labels dated before their transactions", "confirmed_after_booking")
def _label_before_booking(world: World) -> str:
    world.change_some("labels.csv", 0.04, *moved(["confirmed_at"], ISO, days=-200))
    return "labels.csv"


@_defect("labels dated like their transactions", "labels_instant")
def _labels_instant(world: World) -> str:
    rows = world.read("labels.csv")
    booked = pl.concat([world.read(world.file(NORTH, f"2025-{m:02}")).select("id", "booked_at") for m in (1, 2, 3)])
    joined = rows.join(booked, left_on="transaction_id", right_on="id", how="left", maintain_order="left")
    more = booked.filter(~pl.col("id").is_in(rows["transaction_id"].implode())).gather_every(37).select(
        transaction_id="id", is_anomaly=pl.lit("false"), typology=pl.lit(None, pl.String), confirmed_at="booked_at"
    )  # fmt: skip
    told = joined.with_columns(confirmed_at=pl.coalesce("booked_at", "confirmed_at")).drop("booked_at")
    world.write("labels.csv", pl.concat([told, more]))
    return "labels.csv"


@_defect("a cash machine pays out millions", "amount_within_limit")
def _beyond_limit(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(file, 0.002, pl.lit("atm").alias("channel"), pl.lit("5000000.00").alias("amount"))
    return file


@_defect("amounts with fractions of a cent", "amount_in_minor_units")
def _fractions_of_cents(world: World) -> str:
    file = world.file(NORTH)
    world.change_some(file, 0.05, (pl.col("amount") + "37").alias("amount"))
    return file


@_defect("time zones that no database knows", "account_timezone_known")
def _unknown_time_zone(world: World) -> str:
    world.change_some(f"{NORTH}/accounts.csv", 0.02, pl.lit("CET/Winter").alias("timezone"))
    return f"{NORTH}/accounts.csv"


@_defect("exchange rates of one currency left out", "records_refused")
def _rates_missing(world: World) -> str:
    world.write("rates.csv", world.read("rates.csv").filter(pl.col("currency") != "USD"))
    return "summit/transactions"


@_defect("an entry missing between two balances of a statement", "statement_balance")
def _statement_breaks(world: World) -> str:
    file = f"castle/statement-{DAY}.xml"
    text = (world.raw / file).read_text(encoding="utf-8")
    start = text.index("<Ntry>")
    stop = text.index("</Ntry>") + len("</Ntry>")
    world.write_bytes(file, (text[:start] + text[stop:]).encode())
    return file
