"""Which columns a detector reads."""

import numpy as np
import pytest

from reperform import detectors
from reperform.errors import ReperformError

XGBOOST = detectors.kind_of("xgboost")


def test_xgboost_reads_only_the_columns_it_is_told_to() -> None:
    model_inputs = ["a", "b", "c"]
    assert XGBOOST.columns({"only": ["c", "a"]}, model_inputs, ["a", "n", "b", "c"]) == ["a", "c"]
    assert XGBOOST.columns({"only": []}, model_inputs, model_inputs) == model_inputs
    assert XGBOOST.columns({}, model_inputs, []) == model_inputs


def test_a_column_that_is_no_model_input_is_refused() -> None:
    with pytest.raises(ReperformError, match=r"'amount_lg': it is no model input[\s\S]*did you mean amount_log"):
        XGBOOST.columns({"only": ["amount_lg"]}, ["amount_log", "b"], ["amount_lg"])


def test_a_fit_keeps_what_it_was_told_to_read() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 2)).astype(np.float32)
    one = detectors.build("xgboost", {"only": ["a", "c"], "n_estimators": 3}, features=["a", "c"], seed=1)
    one.fit(x, (x[:, 0] > 1).astype(np.int8))
    assert one.facts()["known_anomalies"] > 0
    assert one.get_params()["only"] == ["a", "c"]
    assert one.booster_.feature_names == ["a", "c"]
