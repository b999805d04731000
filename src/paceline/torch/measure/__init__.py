"""Record the steps of a live job, and turn a model and its link into a `Job`."""

from paceline.torch.measure._cost import MeasuredCost, measure_cost
from paceline.torch.measure._detail import Detail
from paceline.torch.measure._job import measure_job
from paceline.torch.measure._link import measure_link
from paceline.torch.measure._slowdown import measure_slowdown
from paceline.torch.measure._unchanged import unchanged
from paceline.torch.measure._watch import Watch, watch
