"""The main job on real text: plain data-parallel training beside Paceline's."""

from paceline.demo._config import DemoConfig
from paceline.demo._result import DemoResult
from paceline.demo._run import run_demo, show

__all__ = ["DemoConfig", "DemoResult", "run_demo", "show"]
