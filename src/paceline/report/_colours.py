"""Colours that people with any colour vision tell apart, on white and on black.

Source: the palette of M. Okabe and K. Ito, "Color Universal Design", 2008.
"""

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#8A939B"

CLASS_COLOURS = {
    "forward": SKY,
    "backward": BLUE,
    "optimizer": GREEN,
    "other": GREY,
    "data": ORANGE,
    "waiting": VERMILION,
    "wire": PURPLE,
    "copy": YELLOW,
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
