import verdict


def test_sixty_runs_hold_every_cause_and_ten_healthy_ones() -> None:
    found = list(verdict.cases(1000))
    assert len(found) == len({case.seed for case in found}) == 60
    assert min(case.seed for case in found) == 1000
    assert sum(not case.planted for case in found) >= 10
    for script in verdict.SCRIPTS:
        planted = [case.planted for case in found if case.script == script]
        assert {cause for causes in planted for cause in causes} == set(verdict.SINGLE)


def test_a_score_counts_what_is_missed_and_what_is_said_for_nothing() -> None:
    def told(planted: list[str], said: list[str]) -> dict[str, object]:
        causes = [{"cause": cause} for cause in said]
        return {"planted": planted, "said": causes, "right": planted == said}

    runs = [
        told(["loader"], ["loader"]),
        told(["loader", "padding"], ["loader"]),
        told([], ["slow-rank"]),
        told([], []),
    ]
    assert verdict.score(runs) == {
        "num_runs": 4,
        "num_right": 2,
        "num_missed_causes": 1,
        "num_causes_not_planted": 1,
        "num_healthy": 2,
        "num_false_alarms_in_healthy": 1,
    }
