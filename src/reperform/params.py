"""Typed parameters: one frozen dataclass per stage, read from params.yaml, unknown keys refused by name."""

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from reperform import paths
from reperform.errors import ReperformError, nearest

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
T = TypeVar("T")


@dataclass(frozen=True, config=_STRICT)
class SimulateParams:
    """The demo world. `world: none` makes an empty one, for runs on real data."""

    world: Literal["demo", "none"]
    seed: int
    start: date
    days: Annotated[int, Field(ge=30)]
    accounts: Annotated[int, Field(ge=50)]
    transactions: Annotated[int, Field(ge=1000)]
    institutions: dict[str, dict[str, Any]]
    background: dict[str, Any]
    typologies: dict[str, dict[str, Any]]
    labels: dict[str, Any]
    filings: dict[str, Any]


@dataclass(frozen=True, config=_STRICT)
class IngestParams:
    """Sources below one raw folder; each is a column map or a description of XML or XBRL files.

    Args:
        raw: the folder, relative to the project.
        sources: name to description; see `reperform.ingest` for each kind.
        on_unreadable_file: whether a file that cannot be read at all stops the run, or is listed in quarantine.
        processes: how many processes a reader may start.
        base_currency: of `amount_base`; exchange rates say what one unit of another currency is worth in it.
        piece_bytes: about how much of a file is read at once; it shows in no output.
        unused_cache_bytes: how much to keep in .cache/ingest of what the last run did not use: another experiment may.
    """

    raw: str
    sources: dict[str, dict[str, Any]]
    on_unreadable_file: Literal["stop", "quarantine"]
    processes: Annotated[int, Field(ge=1)]
    base_currency: Annotated[str, Field(pattern="^[A-Z]{3}$")] = "EUR"
    piece_bytes: Annotated[int, Field(ge=1)] = 8 * 2**20
    unused_cache_bytes: Annotated[int, Field(ge=0)] = 4 * 2**30

    def __post_init__(self) -> None:
        """Check every description now, so that a misspelt key is found before the first stage runs."""
        from reperform.ingest import check_source  # noqa: PLC0415  # its modules build on this one

        for name, source in self.sources.items():
            check_source(name, source)


@dataclass(frozen=True, config=_STRICT)
class ValidateParams:
    """Which rules warn, quarantine or stop, and from what share of refused rows the run stops.

    Args:
        stop_above_share: of a table's rows in quarantine.
        rules: severity of each rule about rows.
        feeds: severity of each rule about whole feeds.
        feed_limits: what the feed rules call too much; see conf/validate/.
        amount_limits: largest plausible amount by currency (`any` for the others) and channel (`default` likewise).
    """

    stop_above_share: Share
    rules: dict[str, Literal["warn", "quarantine", "stop"]]
    feeds: dict[str, Literal["warn", "quarantine", "stop"]]
    feed_limits: dict[str, Positive]
    amount_limits: dict[str, dict[str, Positive]]

    def __post_init__(self) -> None:
        """Check every name now, so that a misspelt rule is found before the first stage runs."""
        from reperform import severity  # noqa: PLC0415  # its modules build on this one

        severity.check(self.rules, self.feeds, self.feed_limits, self.amount_limits)


@dataclass(frozen=True, config=_STRICT)
class FeaturizeParams:
    """KPIs to compute, with their windows and limits."""

    kpis: list[str]
    settings: dict[str, dict[str, Any]]


@dataclass(frozen=True, config=_STRICT)
class EngineParams:
    """How KPIs are run; features are the same to the last bit.

    Args:
        name: `local` holds the whole table in memory, `bucketed` one file of accounts or counterparties at a time,
            `spark` one such bucket on every executor.
        threads: buckets that are computed at the same time.
        bucket_rows: rows of a bucket, so many that it fits a processor's cache.
        part_rows: rows of a file of `bucketed`, and of a bucket of `spark`.
        row_group_rows: rows that are put back into order and written at once.
        master: of the Spark cluster.
        executor_memory: of each executor, as Spark writes it.
    """

    name: Literal["local", "bucketed", "spark"] = "local"
    threads: Annotated[int, Field(ge=1)] = 2
    bucket_rows: Annotated[int, Field(ge=1)] = 100_000
    part_rows: Annotated[int, Field(ge=1)] = 1_000_000
    row_group_rows: Annotated[int, Field(ge=1)] = 250_000
    master: str = "local-cluster[2,1,1024]"
    executor_memory: str = "1g"


@dataclass(frozen=True, config=_STRICT)
class SplitParams:
    """Calendar of the evaluation, in whole UTC days.

    The last `validation_days` up to `train_until` validate; a model is first fitted on what lies a label delay before
    them, then again on everything up to `train_until`, and tested from `test_from` on.

    Args:
        train_days: length of the training window that ends with `train_until`.
        train_until: last day whose transactions may be learned from.
        label_delay_days: days without training rows before validation and before the test, while labels arrive.
        label_maturity_days: a transaction without a confirmed label counts as normal once it is this old.
        validation_days: length of the validation window; it ends with `train_until`.
        test_from: first day of the test.
        test_days: length of the test.
        drop_known_compromised: leave out of the test, day by day, accounts already confirmed as compromised.
    """

    train_days: Annotated[int, Field(ge=1)]
    train_until: date
    label_delay_days: Count
    label_maturity_days: Count
    validation_days: Annotated[int, Field(ge=1)]
    test_from: date
    test_days: Annotated[int, Field(ge=1)]
    drop_known_compromised: bool

    @property
    def train_start(self) -> datetime:
        """First moment of the training window."""
        return _midnight(self.train_until - timedelta(days=self.train_days - 1))

    @property
    def train_end(self) -> datetime:
        """First moment after the training window."""
        return _midnight(self.train_until + timedelta(days=1))

    @property
    def validation_start(self) -> datetime:
        """First moment of the validation window."""
        return self.train_end - timedelta(days=self.validation_days)

    @property
    def fit_end(self) -> datetime:
        """First moment after the rows that the first fit learns from; KPI parameters are fitted before it, too."""
        return self.validation_start - timedelta(days=self.label_delay_days)

    @property
    def test_start(self) -> datetime:
        """First moment of the test window; labels confirmed later are unknown to the final fit."""
        return _midnight(self.test_from)

    @property
    def test_end(self) -> datetime:
        """First moment after the test window."""
        return self.test_start + timedelta(days=self.test_days)


@dataclass(frozen=True, config=_STRICT)
class TuneParams:
    """Optuna: how many trials per detector, on how many time-ordered folds. 0 trials keeps the plain values."""

    seed: int
    trials: dict[str, Count]
    folds: Annotated[int, Field(ge=1)]
    fold_days: Annotated[int, Field(ge=1)]
    max_rows: Annotated[int, Field(ge=100)]


@dataclass(frozen=True, config=_STRICT)
class TrainParams:
    """Which detectors run, on which features, from which seed."""

    detectors: list[str]
    seed: int
    exclude_features: list[str]


@dataclass(frozen=True, config=_STRICT)
class EnsembleParams:
    """Members of the stack, how its scores become probabilities and alerts, and how filings are scored beside it.

    Args:
        members: detectors that are stacked.
        calibration: `auto` is isotonic from 1,000 positives on, else sigmoid.
        alert_share: share of validation rows above the alert threshold.
        filings: settings of the filings detector; what is not set keeps the default in its module.
        seed: of the stack.
    """

    members: list[str]
    calibration: Literal["auto", "isotonic", "sigmoid"]
    alert_share: Share
    filings: dict[str, Any]
    seed: int


@dataclass(frozen=True, config=_STRICT)
class EvaluateParams:
    """What is measured, and against which truth: the planted one of the demo world, or mature confirmed labels.

    With `split.drop_known_compromised`, an account counts as compromised when one of its anomalies was booked in the
    last `known_compromised_days` before `split.train_until` ended, or since, and was confirmed before the test day.

    Args:
        truth: which truth.
        bootstrap_rounds: of every interval.
        interval: their coverage.
        alert_shares: shares of all rows that could be looked at.
        precision_at: alerts per day.
        review_costs: of one alert, in base currency.
        known_compromised_days: see above.
        seed: of everything that is drawn.
        restate_at_prevalence: shares of anomalies for which precision is stated as well.
        negatives_kept: share of normal rows that the source kept, where it under-samples; probabilities are corrected.
        new_account_days: age from which an account is no longer new.
        least_anomalies: a group with fewer is said to be too small.
        fairness_attribute: column of accounts whose groups are compared; null: see `report.fairness`.
    """

    truth: Literal["planted", "labels"]
    bootstrap_rounds: Annotated[int, Field(ge=20)]
    interval: Share
    alert_shares: list[Share]
    precision_at: list[Annotated[int, Field(ge=1)]]
    review_costs: list[Positive]
    known_compromised_days: Annotated[int, Field(ge=1)]
    seed: int
    restate_at_prevalence: list[Annotated[float, Field(gt=0, lt=1)]] = field(default_factory=list)
    negatives_kept: Annotated[float, Field(gt=0, le=1)] = 1.0
    new_account_days: Annotated[int, Field(ge=1)] = 90
    least_anomalies: Annotated[int, Field(ge=1)] = 10
    fairness_attribute: str | None = None


@dataclass(frozen=True, config=_STRICT)
class PatternParams:
    """One pattern of abuse that is injected: which amounts, gaps and lengths, each with each."""

    amounts: list[Positive]
    gaps_hours: list[Positive]
    lengths: list[Annotated[int, Field(ge=1)]]


@dataclass(frozen=True, config=_STRICT)
class PowerParams:
    """How detection power is measured.

    Args:
        alert_share: share of untouched rows above the alert threshold.
        repeats: events per amount, gap and length.
        most_injected_share: of the rows of the test period in one round; more events make more rounds.
        most_rows: of the background; a larger one is cut to whole accounts, drawn by the seed.
        quiet_days: without any row, after which an account counts as dormant.
        found_from: share of events found from which a pattern counts as seen.
        patterns: by name; see `reperform.power.patterns`.
    """

    alert_share: Share = 0.005
    repeats: Annotated[int, Field(ge=1)] = 3
    most_injected_share: Annotated[float, Field(gt=0, le=0.2)] = 0.015
    most_rows: Annotated[int, Field(ge=1000)] = 400_000
    quiet_days: Annotated[int, Field(ge=1)] = 30
    found_from: Share = 0.5
    patterns: dict[str, PatternParams] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class PromotionParams:
    """The rule by which a model version becomes champion.

    Args:
        confidence: share of bootstrap rounds in which its average precision must be above the champion's.
        largest_typology_loss: of recall at the same number of alerts, in any typology.
        least_anomalies: a typology with fewer in the test is named and not judged.
        bootstrap_rounds: of the paired block bootstrap.
    """

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    largest_typology_loss: Share = 0.1
    least_anomalies: Annotated[int, Field(ge=1)] = 10
    bootstrap_rounds: Annotated[int, Field(ge=20)] = 2000


@dataclass(frozen=True, config=_STRICT)
class StudiesParams:
    """Studies that people run by hand: `heldout`, `stability`, `power`, `compare`, `promote`. No stage reads this.

    Args:
        seed: of everything that is drawn.
        alert_share: of the test that each held-out typology is looked for in.
        found_from: recall from which a held-out typology counts as found.
        seeds: how many seeds the alerts of a detector are compared over.
        seeded: detectors that are fitted again with each seed.
        power: see there.
        promotion: see there.
    """

    seed: int = 7
    alert_share: Share = 0.005
    found_from: Share = 0.3
    seeds: Annotated[int, Field(ge=2)] = 5
    seeded: list[str] = field(default_factory=lambda: ["xgboost", "lstm_autoencoder"])
    power: PowerParams = field(default_factory=PowerParams)
    promotion: PromotionParams = field(default_factory=PromotionParams)


@dataclass(frozen=True, config=_STRICT)
class ExplainParams:
    """How alerts are explained, and how far the explanations are put to the test.

    Args:
        seed: of everything that is drawn.
        max_alerts: alerts explained, in order of rank; how many are left out is said.
        non_alerts: random test transactions without an alert that are explained beside them.
        background_rows: training rows that stand for what a replaced feature could have been.
        sampled_shap_rows: fewer of them, where SHAP is sampled because no boosted trees are among the detectors.
        lime_samples: neighbours of each surrogate.
        lime_repeat_rows: alerts whose LIME is repeated.
        lime_repeat_seeds: how often it is repeated.
        top_features: features that a receipt tells in full.
        perturbations: slightly changed inputs per row whose explanations are compared.
        perturbation_noise: their noise, in median absolute deviations of each feature.
        same_prediction_within: largest change of the prediction that still counts as the same.
        random_orders: random orders of deletion that the order of importance is compared with.
        neighbours: training rows that a deleted feature takes its values from.
        sanity_rows: rows of the fits on true and on permuted labels.
        bootstrap_rounds: of every interval.
        interval: their coverage.
    """

    seed: int
    max_alerts: Annotated[int, Field(ge=1)]
    non_alerts: Count
    background_rows: Annotated[int, Field(ge=1)]
    sampled_shap_rows: Annotated[int, Field(ge=1)]
    lime_samples: Annotated[int, Field(ge=100)]
    lime_repeat_rows: Count
    lime_repeat_seeds: Annotated[int, Field(ge=2)]
    top_features: Annotated[int, Field(ge=1)]
    perturbations: Annotated[int, Field(ge=1)]
    perturbation_noise: Positive
    same_prediction_within: Share
    random_orders: Annotated[int, Field(ge=1)]
    neighbours: Annotated[int, Field(ge=1)]
    sanity_rows: Annotated[int, Field(ge=100)]
    bootstrap_rounds: Annotated[int, Field(ge=20)]
    interval: Share


@dataclass(frozen=True, config=_STRICT)
class ForecastParams:
    """Series, horizon and rolling origins; `rate_models` forecast shares of rows, `models` everything else.

    The risk of an account (KPI 14) is fitted for `risk_fit_days` ahead, judged for `risk_horizon_days`, and shown for
    each of `risk_shown_days`.
    """

    horizon_days: Annotated[int, Field(ge=1)]
    origins: Annotated[int, Field(ge=3)]
    season_days: Annotated[int, Field(ge=1)]
    levels: list[Annotated[int, Field(ge=1, le=99)]]
    models: list[str]
    rate_models: list[str]
    risk_fit_days: Annotated[int, Field(ge=1)]
    risk_horizon_days: Annotated[int, Field(ge=1)]
    risk_shown_days: list[Annotated[int, Field(ge=1)]]
    bootstrap_rounds: Annotated[int, Field(ge=20)]
    seed: int


@dataclass(frozen=True, config=_STRICT)
class MonitorParams:
    """Windows and limits of drift.

    Args:
        current_days: length of the window that ends with the data; it never reaches back into training.
        bins: training-quantile bins of the population stability index.
        warn_above: of the index, less what unchanged samples show; likewise for the other limits.
        act_above: from here on something must be done.
        missing_warn_above: rise in the share of missing values.
        missing_act_above: same.
        alerts_warn_ratio: alerts per day against what the threshold was set for, or the inverse.
        alerts_act_ratio: same.
        performance_warn_drop: share of the validation's average precision that is lost.
        performance_act_drop: same.
        min_anomalies: fewer known ones in a week tell nothing about performance.
        silent_warn_days: days on which an institution that usually reports every day sent nothing.
        silent_act_days: same.
    """

    current_days: Annotated[int, Field(ge=1)]
    bins: Annotated[int, Field(ge=2)]
    warn_above: Positive
    act_above: Positive
    missing_warn_above: Share
    missing_act_above: Share
    alerts_warn_ratio: Annotated[float, Field(gt=1)]
    alerts_act_ratio: Annotated[float, Field(gt=1)]
    performance_warn_drop: Share
    performance_act_drop: Share
    min_anomalies: Annotated[int, Field(ge=1)]
    silent_warn_days: Annotated[int, Field(ge=1)]
    silent_act_days: Annotated[int, Field(ge=1)]
    bootstrap_rounds: Annotated[int, Field(ge=20)]
    seed: int


@dataclass(frozen=True, config=_STRICT)
class ExportParams:
    """Schema and role names in PostgreSQL, and whose feature rows go there (the Parquet file holds all of them)."""

    db_schema: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,62}$")]
    reader_role: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,62}$")]
    features_of: Literal["alerts", "test", "all", "none"]


Statement = Annotated[str, Field(min_length=1)]
Statements = Annotated[list[Statement], Field(min_length=1)]


@dataclass(frozen=True, config=_STRICT)
class ReportParams:
    """Which reports are rendered, and what people must state in them: no stage can measure these.

    Args:
        pages: names of templates in `reports/templates/`.
        title: heading of the overview.
        owner: who answers for the model.
        tier: its place in the model inventory, exposure by purpose.
        purpose: what it is for.
        users: who works with it.
        prohibited_uses: what it must not be used for.
        assumptions: what must hold for its results to mean something.
        limitations: what it does not do, each with a date of expiry or review.
        monitoring_owner: who acts on triggers.
        personal_data: columns that identify a person, and how they are protected.
        fairness: the protected attribute that is measured, or why none is, and who signed that.
    """

    pages: Statements
    title: Statement
    owner: Statement
    tier: Statement
    purpose: Statement
    users: Statements
    prohibited_uses: Statements
    assumptions: Statements
    limitations: list[dict[Literal["text", "review_by"], str]]
    monitoring_owner: Statement
    personal_data: list[dict[Literal["column", "protection"], str]]
    fairness: dict[Literal["not_applicable_because", "signed_by", "signed_on"], str]


@dataclass(frozen=True, config=_STRICT)
class AuditParams:
    """What the manifest covers: files and folders, without what meets a pattern."""

    include: list[str]
    exclude: list[str]


@dataclass(frozen=True, config=_STRICT)
class JobsParams:
    """Files that are scored in the background.

    Args:
        chunk_rows: scored and written at once; a job that was cut short goes on after the last one.
        lease_s: after which a job whose process was killed is taken over.
        poll_s: between looks for new jobs.
        reasons: for which rows reasons are written.
        attempts: failures in a row, killed processes among them, after which a job is given up.
        first_wait_s: before a job that failed is tried again; it doubles with every further failure.
        most_unpacked_bytes: of a file, whatever its source allows.
        most_rows: of a file; they are sorted in memory.
    """

    chunk_rows: Annotated[int, Field(ge=1, le=1000)] = 1000
    lease_s: Positive = 60
    poll_s: Positive = 1
    reasons: Literal["all", "alerts", "none"] = "alerts"
    attempts: Annotated[int, Field(ge=1)] = 3
    first_wait_s: Positive = 5
    most_unpacked_bytes: Annotated[int, Field(ge=1)] = 2 * 2**30
    most_rows: Annotated[int, Field(ge=1)] = 2_000_000


AlertField = Literal["entity_id", "account_id", "counterparty_id", "booked_at", "known_at", "amount_base"]


@dataclass(frozen=True, config=_STRICT)
class ReceiverParams:
    """Who gets which alerts.

    Args:
        url: where they are posted to.
        secret_variable: environment variable that holds the secret they are signed with.
        entities: institutions whose alerts go there; null: all.
        least_probability: of the alerts that go there.
        kpis: patterns such as `structuring_*`; one of an alert's reasons must match one of them. Null: whatever the
            reasons. Nobody has confirmed a live alert's typology, but its KPIs say what it looks like.
        fields: what a message tells of the transaction, beside its id.
        reasons: KPIs that speak for the alert, by their names alone or with their values.
        allow_plain: HTTP without TLS, for receivers on the same machine.
        at_once: messages that are under way to it from one process.
    """

    url: Annotated[str, Field(pattern="^https?://")]
    secret_variable: Annotated[str, Field(pattern="^[A-Z][A-Z0-9_]*$")]
    entities: list[str] | None = None
    least_probability: Share = 0.0
    kpis: list[str] | None = None
    fields: list[AlertField] = field(default_factory=lambda: ["entity_id", "account_id", "booked_at", "known_at"])
    reasons: Literal["none", "names", "values"] = "names"
    allow_plain: bool = False
    at_once: Annotated[int, Field(ge=1, le=8)] = 1


@dataclass(frozen=True, config=_STRICT)
class WebhooksParams:
    """How alerts go out.

    Args:
        receivers: by name.
        attempts: after which a delivery is dead until somebody asks for it again.
        first_wait_s: before the second attempt; it doubles with every further one.
        longest_wait_s: between two attempts.
        timeout_s: of one attempt.
        poll_s: between looks for what is due.
        break_after: failures in a row after which a receiver is left alone for a while.
        break_s: how long; then one message is tried.
    """

    receivers: dict[str, ReceiverParams] = field(default_factory=dict)
    attempts: Annotated[int, Field(ge=1)] = 12
    first_wait_s: Positive = 1
    longest_wait_s: Positive = 3600
    timeout_s: Positive = 5
    poll_s: Positive = 1
    break_after: Annotated[int, Field(ge=1)] = 5
    break_s: Positive = 30


@dataclass(frozen=True, config=_STRICT)
class ServeParams:
    """The real-time service. No stage reads this.

    Args:
        host: address to listen on.
        port: likewise.
        workers: processes; each holds all histories in memory.
        largest_body_bytes: of a request in JSON.
        largest_file_bytes: of a file to score.
        most_transactions: in one request.
        most_waiting: requests that may wait for their turn in one process; further ones are sent away.
        clock_skew_s: by which clocks of clients may differ from ours, and transactions may come out of order.
        latest_arrival_days: after booking; older ones belong in a file for the pipeline.
        reasons: for which transactions an answer gives reasons, unless the request says otherwise.
        n_reasons: at most, for each.
        history_until: rows of the pipeline that the service begins with: all (null), or those known before the test.
        retry_after_s: what clients are told to wait when the service is busy or starting.
        behind_tls: whether clients come over HTTPS; then they are told to do so always.
        graceful_stop_s: for requests that are under way when the service is told to end.
        champion_poll_s: between looks for a new champion.
        shadow: whether a challenger scores what the champion answers.
        request_log: whether every request is written as one line of JSON.
        jobs: see there.
        webhooks: see there.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    largest_body_bytes: Annotated[int, Field(ge=1000)] = 2 * 2**20
    largest_file_bytes: Annotated[int, Field(ge=1000)] = 256 * 2**20
    most_transactions: Annotated[int, Field(ge=1, le=1000)] = 1000
    most_waiting: Annotated[int, Field(ge=1)] = 32
    clock_skew_s: Annotated[float, Field(ge=0)] = 300
    latest_arrival_days: Positive = 60
    reasons: Literal["all", "alerts", "none"] = "alerts"
    n_reasons: Annotated[int, Field(ge=1, le=50)] = 5
    history_until: Literal["test_start"] | None = None
    retry_after_s: Positive = 2
    behind_tls: bool = False
    graceful_stop_s: Annotated[int, Field(ge=1)] = 30
    champion_poll_s: Positive = 5
    shadow: bool = True
    request_log: bool = True
    jobs: JobsParams = field(default_factory=JobsParams)
    webhooks: WebhooksParams = field(default_factory=WebhooksParams)


@dataclass(frozen=True, config=_STRICT)
class ComposeParams:
    """How params.yaml was composed, so that it can be composed again and compared."""

    experiment: str | None = None
    overrides: list[str] = field(default_factory=list)


SECTIONS: dict[str, type] = {
    "compose": ComposeParams,
    "simulate": SimulateParams,
    "ingest": IngestParams,
    "validate": ValidateParams,
    "featurize": FeaturizeParams,
    "engine": EngineParams,
    "split": SplitParams,
    "tune": TuneParams,
    "train": TrainParams,
    "ensemble": EnsembleParams,
    "evaluate": EvaluateParams,
    "studies": StudiesParams,
    "explain": ExplainParams,
    "forecast": ForecastParams,
    "monitor": MonitorParams,
    "export": ExportParams,
    "report": ReportParams,
    "audit": AuditParams,
    "serve": ServeParams,
}
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
# May be left out: every value has a default, and no result depends on it.
DEFAULT_SECTIONS = ("engine", "studies", "serve")
FREE_SECTIONS = ("model",)  # detectors check their own parameters when they are built


def load(section: type[T], source: Path | None = None) -> T:
    """The parameters of one stage.

    Args:
        section: its dataclass, one of `SECTIONS`.
        source: a params.yaml; the project's own if not given.

    Raises:
        ReperformError: for a missing section, an unknown key (with its nearest neighbours) or a wrong value.
    """
    name = next(key for key, value in SECTIONS.items() if value is section)
    path = source or paths.params_file()
    return build(section, raw(path).get(name, _default(name)), where=f"{path.name}:{name}")


def _default(name: str) -> dict[str, Any] | None:
    return {} if name in DEFAULT_SECTIONS else None


def model(detector: str, source: Path | None = None) -> dict[str, Any]:
    """The parameters of one detector, as written in `conf/model/`: plain values, and ranges to search."""
    path = source or paths.params_file()
    models = raw(path).get("model", {})
    if detector not in models:
        raise ReperformError(
            f"No detector {detector!r}.",
            expected="a detector with parameters in conf/model/",
            got=detector,
            where=f"{path.name}:model",
            fix=nearest(detector, models),
        )
    return dict(models[detector] or {})


def raw(path: Path) -> dict[str, Any]:
    """The whole parameter file as plain Python, read with OmegaConf (plain PyYAML reads 1e-3 as a string)."""
    if not path.is_file():
        raise ReperformError(
            "There are no parameters.",
            expected="params.yaml",
            got="no such file",
            where=str(path.parent),
            fix="run `make params` to compose it from conf/",
        )
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _modified_ns: int) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise ReperformError(
            "The parameters cannot be read.",
            got=str(error),
            where=str(path),
            fix="run `make params` to compose it again",
        ) from error
    if not isinstance(content, dict):
        raise ReperformError("The parameters are empty.", where=str(path), fix="run `make params`")
    return {str(key): value for key, value in content.items()}


def check_all(content: Mapping[str, Any], where: str) -> None:
    """Build every section, so that a wrong value is found before the first stage runs."""
    for name in content:
        if name not in SECTIONS and name not in FREE_SECTIONS:
            raise ReperformError(
                f"Unknown section {name!r}.",
                expected=f"one section per stage: {', '.join(SECTIONS)}",
                got=name,
                where=where,
                fix=nearest(name, [*SECTIONS, *FREE_SECTIONS]),
            )
    for name, section in SECTIONS.items():
        build(section, content.get(name, _default(name)), where=f"{where}:{name}")
    known = content.get("model") or {}
    for detector in content["train"]["detectors"]:
        if detector not in known:
            raise ReperformError(
                f"No detector {detector!r}.",
                expected="a detector with parameters in conf/model/",
                got=detector,
                where=f"{where}:train.detectors",
                fix=nearest(detector, known),
            )


def build(section: type[T], values: Any, where: str) -> T:
    """Make a frozen dataclass out of plain values, or explain what is wrong with them."""
    if not isinstance(values, Mapping):
        raise ReperformError(
            "A section of the parameters is missing.",
            expected=f"a mapping with {', '.join(f.name for f in fields(section))}",  # type: ignore[arg-type]
            got=repr(values),
            where=where,
            fix="run `make params`",
        )
    try:
        return TypeAdapter(section).validate_python(dict(values))
    except ValidationError as error:
        raise _explain(section, error, where) from error


def _explain(section: type, error: ValidationError, where: str) -> ReperformError:
    # A misspelt key is unknown, and its right name is missing: the unknown one says more.
    unknown = [one for one in error.errors() if one["type"] in UNKNOWN_KEY]
    first = (unknown or error.errors())[0]
    location = [str(part) for part in first["loc"]]
    place = ".".join([where, *location])
    if first["type"] in UNKNOWN_KEY:
        known = _keys_at(section, location[:-1])
        return ReperformError(
            f"Unknown parameter {location[-1]!r}.",
            expected=f"one of {', '.join(known)}",
            got=location[-1],
            where=place,
            fix=f"{nearest(location[-1], known)}; then change it in conf/ and run `make params`",
        )
    if first["type"] in ("missing", "missing_argument"):
        return ReperformError(
            f"Parameter {location[-1]!r} is missing.",
            expected="a value",
            got="none",
            where=place,
            fix="add it in conf/",
        )
    return ReperformError(
        f"Parameter {location[-1] if location else where!r} has a wrong value.",
        expected=first["msg"],
        got=repr(first.get("input")),
        where=place,
        fix="change it in conf/ and run `make params`",
    )


def _keys_at(section: Any, location: list[str]) -> list[str]:
    for part in location:
        if not is_dataclass(section):
            break
        hint = get_type_hints(section).get(part)
        section = next((a for a in get_args(hint) if is_dataclass(a)), hint) if get_origin(hint) else hint
    return [f.name for f in fields(section)] if is_dataclass(section) else []


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), tzinfo=UTC)
