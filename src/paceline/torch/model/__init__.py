"""What a live model is asked: its clock, its tensors, which parameters are in use."""

from paceline.torch.model._clock import Clock, CpuClock, clock_of
from paceline.torch.model._param_use import ParamUse, is_compiled
from paceline.torch.model._partial_update import PartialUpdate
from paceline.torch.model._processor import processor_name
from paceline.torch.model._stream_order import StreamOrder
from paceline.torch.model._tensors import call_model, mean_square, tensors_in
from paceline.torch.model._training import check_trains
from paceline.torch.model._trial import MIN_GAIN, Trial
