import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from _predict_score_epochs import evaluate_convergence, score_regime, transfer_convergence
from numpy.typing import NDArray

from paceline.predict import Estimate
from paceline.predict.epochs._calibration import chosen_probes
from paceline.predict.epochs._effects import Effects
from paceline.predict.epochs._forest import Forest
from paceline.predict.epochs._members import Constant
from paceline.predict.epochs._pool import Spread, learn_pool, pooled_epochs
from paceline.predict.epochs._predictor import ConvergencePredictor, fit_convergence
from paceline.predict.epochs._rows import SHIFTS, Runs, Shift, folds, plain_name

PATIENCE = 5


def rows(seed: int = 0) -> list[dict[str, Any]]:
    """Invented runs: SGD slows down with batch / rate, models and datasets differ."""
    random = np.random.default_rng(seed)
    found = []
    for family, models in (("CNN", ("a-1", "b", "c")), ("MLP", ("d", "e"))):
        for m, model in enumerate(models):
            for d, dataset in enumerate(("X", "Y", "Z")):
                for optimizer in ("SGD", "AdamW"):
                    for batch in (32, 128):
                        slow = 1.6 * batch / 32 if optimizer == "SGD" else 1.0
                        epochs = 10 * slow * 1.2**d * 1.3**m * np.exp(random.normal(0, 0.05))
                        found.append(
                            {
                                "architecture": family,
                                "model": model,
                                "dataset": dataset,
                                "optimizer": optimizer,
                                "dataset_size": 1000 * (d + 1),
                                "learning_rate": 1e-3,
                                "batch_size": batch,
                                "param_count": 10_000 * (m + 1),
                                "patience_P": PATIENCE,
                                "min_delta": 1e-4,
                                "max_epochs": 200,
                                "T_conv": round(epochs) + 1,
                                "gradient_norm_log10": random.normal(),
                                "initial_loss_log10": 0.5,
                                "note": "ignored",
                            }
                        )
    return found


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs.from_rows(rows())


@pytest.fixture(scope="module")
def predictor(runs: Runs) -> ConvergencePredictor:
    return fit_convergence(runs)


def test_known_runs_come_out_close(runs: Runs, predictor: ConvergencePredictor) -> None:
    found = np.array([estimate.median for estimate in predictor.predict(runs)])
    assert np.abs(found / runs.T_conv - 1).mean() < 0.1


def test_a_saved_predictor_says_the_same(runs: Runs, predictor: ConvergencePredictor) -> None:
    restored = ConvergencePredictor.from_dict(json.loads(json.dumps(predictor.to_dict())))
    for shift in SHIFTS:
        assert restored.predict(runs, shift=shift) == predictor.predict(runs, shift=shift)
        assert restored.reason("CNN", shift) == predictor.reason("CNN", shift)
    assert restored.to_dict() == predictor.to_dict()


def test_estimates_stay_between_patience_and_the_limit(predictor: ConvergencePredictor) -> None:
    limited = [row | {"max_epochs": 9, "T_conv": np.nan} for row in rows()]
    for estimate in predictor.predict(limited):
        assert PATIENCE + 1 <= estimate.low <= estimate.median <= estimate.high <= 9


@pytest.mark.parametrize(
    ("change", "shift"),
    [
        ({}, "known"),
        ({"model": "A_1"}, "known"),
        ({"dataset": "new"}, "dataset"),
        ({"model": "new"}, "model"),
        ({"model": "new", "dataset": "new"}, "both"),
    ],
)
def test_a_name_never_seen_is_a_shift(
    predictor: ConvergencePredictor, change: dict[str, str], shift: Shift
) -> None:
    row = rows()[0] | change
    assert predictor.shifts(Runs.from_rows([row])) == [shift]
    assert predictor.predict([row]) == predictor.predict([row], shift=shift)


def test_rows_may_be_mixed_and_keep_their_order(predictor: ConvergencePredictor) -> None:
    mixed = [rows()[0], rows()[-1] | {"model": "new"}, rows()[1]]
    assert predictor.predict(mixed) == [predictor.predict([row])[0] for row in mixed]


def test_an_optimizer_never_seen_still_gets_an_estimate(predictor: ConvergencePredictor) -> None:
    (estimate,) = predictor.predict([rows()[0] | {"optimizer": "Lion"}])
    assert isinstance(estimate, Estimate)


def test_the_reason_appears_where_the_constant_did_as_well(
    predictor: ConvergencePredictor,
) -> None:
    seen = predictor.calibrations["cnn"]
    worse = replace(seen["model"], error=0.3, constant_error=0.2)
    changed = replace(predictor, calibrations={"cnn": {**seen, "model": worse}})
    assert "30%, no better than the 20% of a constant" in changed.reason("CNN", "model")
    assert predictor.reason("CNN", "known") == ""


def test_an_unfitted_family_is_refused(predictor: ConvergencePredictor) -> None:
    with pytest.raises(ValueError, match="rnn were fitted, only cnn, mlp"):
        predictor.predict([rows()[0] | {"architecture": "RNN"}])
    with pytest.raises(ValueError, match="fitted: cnn, mlp"):
        predictor.reason("RNN", "known")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.update(version=99), "version 99"),
        (lambda state: state.pop("families"), "damaged"),
        (lambda state: state["shared"]["forest"]["trees"]["child"].__setitem__(0, -7), "damaged"),
        (
            lambda state: state["shared"]["forest"]["trees"]["feature"].__setitem__(0, 999),
            "damaged",
        ),
        (lambda state: state["shared"]["effects"]["effects"].pop(), "fit again"),
    ],
)
def test_a_damaged_predictor_is_refused(
    predictor: ConvergencePredictor, damage: Any, message: str
) -> None:
    state = json.loads(json.dumps(predictor.to_dict()))
    damage(state)
    with pytest.raises(ValueError, match=message):
        ConvergencePredictor.from_dict(state)


def test_no_row_of_the_tables_is_saved(predictor: ConvergencePredictor, runs: Runs) -> None:
    trees = predictor.shared.forest.forest
    own = predictor.own["cnn"].forest.forest
    for forest in (trees, own):
        leaf = forest.feature < 0
        for start, stop in zip(forest.child[leaf], forest.stop[leaf], strict=True):
            assert stop - start >= 3
            assert (np.diff(forest.outcomes[start:stop]) >= 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive and finite, got 0.0 in row 0"),
        ({"learning_rate": "fast"}, "learning_rate must hold numbers"),
        ({"max_epochs": -1}, "max_epochs must be positive"),
        ({"gradient_norm_log10": np.inf}, "gradient_norm_log10"),
    ],
)
def test_bad_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Runs.from_rows([rows()[0] | change])


def test_missing_columns_are_named() -> None:
    row = rows()[0]
    del row["param_count"]
    with pytest.raises(ValueError, match="needs the columns param_count"):
        Runs.from_rows([row])
    with pytest.raises(ValueError, match=r"rows\[1\] lacks param_count"):
        Runs.from_rows([rows()[0], row])
    with pytest.raises(ValueError, match="model has 2 rows"):
        Runs.from_columns({name: [v, v] for name, v in rows()[0].items()} | {"min_delta": [0.1]})


def test_runs_that_did_not_end_cannot_be_fitted(runs: Runs) -> None:
    with pytest.raises(ValueError, match="T_conv must be known"):
        fit_convergence(replace(runs, T_conv=np.full(len(runs), np.nan)))
    with pytest.raises(ValueError, match="at least 8 needed"):
        fit_convergence(runs.take(np.arange(5)))


@pytest.mark.parametrize("shift", SHIFTS)
def test_folds_hold_out_each_run_once_and_never_see_its_unit(runs: Runs, shift: Shift) -> None:
    tested: list[int] = []
    for fold in folds(runs, "cnn", shift):
        assert not set(fold.train) & set(fold.test)
        tested += fold.test.tolist()
        train, test = runs.take(fold.train), runs.take(fold.test)
        if shift in ("dataset", "both"):
            assert not set(train.dataset) & set(test.dataset)
        if shift in ("model", "both"):
            assert not set(train.model) & set(test.model)
    assert sorted(tested) == np.flatnonzero(runs.family == "cnn").tolist()


def test_held_out_epochs_are_never_looked_at(runs: Runs) -> None:
    fold = next(iter(folds(runs, "cnn", "model")))
    changed = runs.T_conv.copy()
    changed[fold.test] = 150
    other = replace(runs, T_conv=changed)
    before = fit_convergence(runs.take(fold.train)).predict(runs.take(fold.test))
    assert fit_convergence(other.take(fold.train)).predict(other.take(fold.test)) == before


def test_a_probe_is_kept_only_if_it_helps(runs: Runs) -> None:
    cnn = runs.take(runs.family == "cnn")
    assert chosen_probes(cnn) == ()
    helpful = replace(
        cnn,
        model=np.full(len(cnn), "same"),
        dataset=np.full(len(cnn), "same"),
        dataset_size=np.ones(len(cnn)),
        param_count=np.ones(len(cnn)),
        gradient_norm_log10=np.log10(cnn.T_conv),
    )
    assert chosen_probes(helpful) == ("gradient_norm_log10",)
    missing = replace(helpful, gradient_norm_log10=np.full(len(cnn), np.nan))
    assert chosen_probes(missing) == ()


def test_effects_of_balanced_runs_are_found(runs: Runs) -> None:
    found = Effects.fit(runs).log_epochs(runs)
    assert np.abs(found - np.log(runs.T_conv)).mean() < 0.08


def test_a_new_name_has_no_effect_of_its_own(runs: Runs) -> None:
    effects = Effects.fit(runs)
    one = Runs.from_rows([rows()[0] | {"model": "new1"}, rows()[0] | {"model": "new2"}])
    assert np.ptp(effects.log_epochs(one)) == 0
    assert effects.spread(one).shape[0] == 2


@pytest.mark.parametrize("min_leaf", [1, 3, 6])
def test_a_forest_weighs_the_outcomes_of_the_leaves(min_leaf: int) -> None:
    random = np.random.default_rng(1)
    features = random.random((40, 3))
    outcomes = np.where(features[:, 1] > 0.5, 20.0, 5.0)
    forest = Forest.fit(features, outcomes, num_trees=30, min_leaf=min_leaf)
    weights = forest.spread(features)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert weights.shape == (40, 2)
    likely = forest.support[weights.argmax(axis=1)]
    assert (likely == outcomes).mean() > 0.9
    state = json.loads(json.dumps(forest.to_dict()))
    np.testing.assert_array_equal(Forest.from_dict(state, num_features=3).spread(features), weights)


def test_a_forest_of_one_leaf_is_the_sample() -> None:
    forest = Forest.fit(np.ones((4, 2)), np.array([2.0, 3.0, 3.0, 4.0]), num_trees=2)
    np.testing.assert_allclose(forest.spread(np.ones((1, 2))), [[0.25, 0.5, 0.25]])


def spread(values: list[float], weights: list[float] | None = None) -> Spread:
    shares = weights or [1 / len(values)] * len(values)
    return Spread(np.array([values]), np.array([shares]))


def best_by_search(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    loss = [float(weights @ np.abs(guess / values - 1)) for guess in values]
    return min(loss)


@pytest.mark.parametrize("seed", range(20))
def test_the_point_has_the_least_expected_relative_error(seed: int) -> None:
    random = np.random.default_rng(seed)
    values, weights = random.uniform(5, 100, 9), random.dirichlet(np.ones(9))
    (guess,) = pooled_epochs([Spread(values[None], weights[None])], np.ones(1))
    assert weights @ np.abs(guess / values - 1) == pytest.approx(best_by_search(values, weights))


def test_the_pool_learns_who_is_right() -> None:
    truth = np.array([10.0])
    held_out = [([spread([10.0]), spread([40.0])], truth) for _ in range(5)]
    assert learn_pool(held_out, rows_alike=True)[0] > 0.6
    alike = [([spread([10.0]), spread([10.0])], truth)] * 3
    np.testing.assert_allclose(learn_pool(alike, rows_alike=False), [0.5, 0.5])


def test_the_constant_knows_the_optimizer(runs: Runs) -> None:
    constant = Constant.fit(runs)
    sgd = runs.take(runs.is_sgd)
    assert constant.of("sgd") == sorted(sgd.T_conv.tolist())
    assert constant.of("lion") == sorted(runs.T_conv.tolist())


@pytest.mark.parametrize(("name", "plain"), [("ResNet-50", "resnet50"), ("b", "b")])
def test_names_are_compared_without_case_and_marks(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_the_evaluation_scores_every_family_and_regime(tmp_path: Any) -> None:
    table = rows()
    names = list(table[0])
    lines = [",".join(names)] + [",".join(str(row[name]) for name in names) for row in table]
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    result = evaluate_convergence(tmp_path)
    assert set(result["families"]) == {"cnn", "mlp"}
    known = result["families"]["cnn"]["cv5"]
    assert known["mape"] < known["constant_mape"]
    assert known["beats_constant"] is True
    assert 70 <= known["coverage"] <= 100
    assert set(result["ablation"]) == {"gradient_norm_log10", "initial_loss_log10"}
    assert result["ablation"]["gradient_norm_log10"]["mlp"]["kept"] is False
    json.dumps(result)


def test_runs_of_another_folder_are_scored_by_what_is_new(
    tmp_path: Any, predictor: ConvergencePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [{**row, "dataset": f"other {row['dataset']}"} for row in rows()]
    for name, part in (("train", rows()), ("test", table)):
        (tmp_path / name).mkdir()
        lines = [",".join(part[0])] + [",".join(str(v) for v in row.values()) for row in part]
        (tmp_path / name / "runs.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("_predict_score_epochs.fit_convergence", lambda runs, seed: predictor)
    seen = transfer_convergence(tmp_path / "train", tmp_path / "train")
    new = transfer_convergence(tmp_path / "train", tmp_path / "test")
    assert (seen["shifts"], new["shifts"]) == ({"known": len(table)}, {"dataset": len(table)})
    scores = [found["families"]["cnn"]["transfer"] for found in (seen, new)]
    assert scores[0]["mape"] < scores[1]["mape"]
    assert all(0 <= one["coverage"] <= 100 for one in scores)


def test_a_folder_without_tables_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"no \*.csv"):
        evaluate_convergence(tmp_path)


def test_too_few_runs_after_holding_out_are_refused(runs: Runs) -> None:
    few = runs.take(np.flatnonzero((runs.model == "d") | (runs.family == "cnn")))
    with pytest.raises(ValueError, match="without d: family mlp has 0 runs, at least 8 needed"):
        score_regime(few, "mlp", "model")
