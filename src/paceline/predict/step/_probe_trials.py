"""What probes would have done on devices whose times are known: trials on held-out devices."""

from collections.abc import Iterator

import numpy as np

from paceline.predict.step._calibration import Calibration, HeldOut, calibrate, join_held_out
from paceline.predict.step._loader import LoaderRates
from paceline.predict.step._probe import ProbeKernel, probed_logs

NUM_PROBES = (1, 3, 10, 30)
"""Numbers of probes that intervals are calibrated for; in between the next lower one holds."""
NUM_DRAWS = 3


def probe_trial(
    part: HeldOut,
    kernel: ProbeKernel,
    loader: LoaderRates,
    num_probes: int,
    rng: np.random.Generator,
) -> HeldOut:
    """Probe rows of one device and family at random and predict the other ones.

    Args:
        part: Rows of one device and family, predicted without it.
        kernel: How far probes reach.
        loader: Rates of hosts; those of this device are not looked at.
        num_probes: Rows to probe, fewer than there are.
        rng: Draws them.

    Returns:
        The rows that were not probed, with predictions given the probes.
    """
    order = rng.permutation(len(part.rows))
    rest, probes = part.take(order[num_probes:]), part.take(order[:num_probes])
    others = loader.without(str(part.rows["device"][0]))
    return HeldOut(rest.rows, probed_logs(rest.rows, rest.logs, probes, kernel, others))


def by_device_and_family(held_out: HeldOut) -> Iterator[HeldOut]:
    """Parts of one device and family each, in the order of their names."""
    names = held_out.rows.keys("device", "family")
    for name in np.unique(names):
        yield held_out.take(np.flatnonzero(names == name))


def calibrate_probed(
    held_out: HeldOut, kernel: ProbeKernel, loader: LoaderRates, num_probes: int
) -> Calibration:
    """Offsets from trials on every held-out device."""
    trials = []
    for number, part in enumerate(by_device_and_family(held_out)):
        for draw in range(NUM_DRAWS):
            rng = np.random.default_rng([number, draw])
            if len(part.rows) > num_probes:
                trials.append(probe_trial(part, kernel, loader, num_probes, rng))
    return calibrate(join_held_out(trials), "device")
