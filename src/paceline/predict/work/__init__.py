"""What is to be computed, and on what: layers, operators, memory, devices, known models."""

from paceline.predict.work._catalogue import (
    DatasetFacts,
    Datasets,
    Devices,
    Models,
    Optimizers,
    catalogue_workload,
)
from paceline.predict.work._devices import Device
from paceline.predict.work._memory import MemoryEstimate, estimate_memory
from paceline.predict.work._sharding import Sharding, block_of
from paceline.predict.work._workload import (
    Bound,
    Family,
    LayerWork,
    MemoryMoment,
    OperatorWork,
    Phase,
    Workload,
)
