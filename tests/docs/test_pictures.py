"""The pictures of the documentation: what they show is what a run holds."""

from pathlib import Path
from xml.etree import ElementTree

import docs_pictures
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from tests.report.conftest import made_steps

from paceline.run import Run


@pytest.fixture(autouse=True)
def style() -> None:
    mpl.use("svg")


def test_before_and_after_share_one_scale() -> None:
    before = Run.of(made_steps(2, 40))
    faster = [
        steps._replace(
            **{name: getattr(steps, name) / 2 for name in steps._fields if name.endswith("_s")}
        )
        for steps in made_steps(2, 40)
    ]
    figure = docs_pictures.before_after(before, Run.of(faster))
    ends_s = [
        max(path.vertices[:, 0].max() for drawn in axes.collections for path in drawn.get_paths())
        for axes in figure.axes
    ]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert ends_s[1] == pytest.approx(ends_s[0] / 2)
    pyplot.close(figure)


def test_the_darkest_cell_is_the_longest_wait() -> None:
    run = Run.of(made_steps(3, 40))
    wait_s = run.grid().seconds["waiting"]
    figure = docs_pictures.waits(run)
    (mesh,) = figure.axes[0].collections
    assert np.argmax(mesh.get_array()) == np.argmax(wait_s)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["no wait", f"waited {1e3 * wait_s.max():,.0f} ms, measured"]
    pyplot.close(figure)


def test_the_verdict_is_text_in_a_picture(tmp_path: Path) -> None:
    lines = ["what   5% < 6% & more", "why    because"]
    path = tmp_path / "verdict.svg"
    path.write_text(docs_pictures.text_picture("\n".join(lines)), encoding="utf-8")
    assert [one.text for one in ElementTree.parse(path).getroot()] == lines
