import json
import subprocess
import sys

import pytest

from paceline.cli import main
from paceline.order import coordinated_pair_balance, gaussian_unit_rows, simulate_herding

SMALL = ["--dim", "20", "--examples", "30", "--workers", "4", "--rounds", "3"]
NAMES = {
    "random-reshuffling",
    "shuffle-once",
    "flip-flop",
    "grab",
    "pair-balance",
    "i-b",
    "i-pb",
    "d-grab",
    "recursive-mean-balance",
    "recursive-pair-balance",
    "self-balancing-walk",
    "windowed-greedy",
    "halve-and-herd",
}


def test_json_holds_every_policy_and_round(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["herding", *SMALL, "--trials", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["dim"], result["examples"], result["workers"]) == (20, 30, 4)
    assert "simulated" in result["source"]
    assert set(result["policies"]) == NAMES
    for policy in result["policies"].values():
        assert len(policy["bounds"]) == 4
        assert policy["floor"] == min(policy["bounds"][1:])
        assert policy["relative_time"] >= 0
        for mean, smallest, largest, any_prefix in zip(
            policy["bounds"],
            policy["smallest_of_a_trial"],
            policy["largest_of_a_trial"],
            policy["bounds_of_any_prefix"],
            strict=True,
        ):
            assert 0 < smallest <= mean <= largest
            assert mean <= any_prefix
    assert result["policies"][result["reference"]]["relative_time"] == 1


def test_the_command_says_what_the_library_says(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--policies", "d-grab", "--seed", "5", "--json"]
    assert main(["herding", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = gaussian_unit_rows(20, 30, 4, seed=5)
    run = simulate_herding(
        coordinated_pair_balance(120, 4, seed=5), rows, batch_size=4, num_rounds=3
    )
    assert result["policies"]["d-grab"]["bounds"] == [bound.per_step for bound in run.bounds]


def test_the_reference_is_there_whatever_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["herding", *SMALL, "--policies", "grab,halve-and-herd"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "simulated" not in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["d-grab", "grab", "halve-and-herd"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dim", "0"], "dim must be at least 1, got 0"),
        (["--examples", "0"], "num_examples must be at least 1, got 0"),
        (["--workers", "-1"], "num_workers must be at least 1, got -1"),
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
        (["--trials", "0"], "trials must be at least 1, got 0"),
        (["--seed", "-1"], "seed must not be negative, got -1"),
        (["--policies", "best"], "policies must be among random-reshuffling,"),
    ],
)
def test_a_bad_value_is_answered_by_its_rule(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["herding", *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_simulation_needs_no_torch() -> None:
    arguments = ["herding", *SMALL, "--policies", "d-grab", "--json"]
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from paceline.cli import main; sys.exit(main({arguments}))"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
