"""Colours that people with any colour vision tell apart, on white and on black.

Those of spans are those of `Timeline.plot`; waiting has the one that they leave.
"""

from paceline.timeline import KIND_COLOURS, Kind

BLUE, VERMILION = KIND_COLOURS[Kind.BACKWARD], "#D55E00"
PURPLE, ORANGE = KIND_COLOURS[Kind.COLLECTIVE], KIND_COLOURS[Kind.DATA]
GREEN = KIND_COLOURS[Kind.OPTIMIZER]
CLASS_COLOURS = {
    "forward": KIND_COLOURS[Kind.FORWARD],
    "backward": BLUE,
    "optimizer": GREEN,
    "other": KIND_COLOURS[Kind.COMPUTE],
    "data": ORANGE,
    "waiting": VERMILION,
    "wire": PURPLE,
    "copy": KIND_COLOURS[Kind.COPY],
}
MEANINGS = {
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "other": "other work",
    "data": "waiting for data",
    "waiting": "waiting for a slower rank",
    "wire": "communication, all ranks there",
    "copy": "copies",
}
