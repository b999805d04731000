"""Sketches of single examples' gradients, and the order that learns from them."""

from paceline.torch.order._gradient_order import GradientOrder
from paceline.torch.order._gradient_sketch import GradientSketch, quantise_rows
