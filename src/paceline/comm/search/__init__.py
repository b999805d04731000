"""Search for the blocks and their order that let a step end first."""

from paceline.comm.search._search import baseline_plans, plan_blocks
