"""One JSON file for a fitted step predictor, guarded against change.

The file holds coefficients, LightGBM's text models (compressed), offsets, loader rates by host and
dataset, and where all of it came from. It holds no row of a table, and reading it runs no code.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paceline._files import read_json, shown, told
from paceline.errors import StateMismatchError
from paceline.predict.step._boost import Boosted
from paceline.predict.step._calibration import Calibration, Offsets
from paceline.predict.step._loader import LoaderRates
from paceline.predict.step._predictor import StepPredictor
from paceline.predict.step._probe import ProbeKernel
from paceline.predict.step._roofline import Roofline
from paceline.predict.step._time import DeviceModel, HostModel, StepModels

FORMAT = "paceline step predictor"
VERSION = 2  # 1 had other coefficients and named one novelty
MALFORMED = (LookupError, TypeError, AttributeError, ValueError, OverflowError, zlib.error)


def save_step_predictor(predictor: StepPredictor, path: str | Path) -> None:
    """Write `predictor` to one JSON file, without its probes.

    Raises:
        OSError: If the file cannot be written.
    """
    content = _encode(predictor)
    sha256 = digest_of(content)
    document = {"format": FORMAT, "version": VERSION, "sha256": sha256, "content": content}
    Path(path).write_text(json.dumps(document, sort_keys=True), encoding="utf-8")


def load_step_predictor(path: str | Path) -> StepPredictor:
    """Read what `save_step_predictor` wrote.

    Raises:
        StateMismatchError: If the file is of another kind or version, is cut
            short, or its content was changed after it was written.
        MissingExtraError: If LightGBM is not installed.
    """
    path = Path(path)
    try:
        document = read_json(path)
    except ValueError as error:
        raise StateMismatchError(f"{path.name} is not JSON ({told(error)}); fit it again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StateMismatchError(f"{path.name} is not a {FORMAT} file")
    if document.get("version") != VERSION:
        raise StateMismatchError(
            f"{path.name} has version {shown(document.get('version'))}, but this Paceline reads "
            f"version {VERSION}; fit it again with this Paceline"
        )
    content = document.get("content")
    if not isinstance(content, dict) or digest_of(content) != document.get("sha256"):
        raise StateMismatchError(
            f"the content of {path.name} does not match its sha256: it was changed after it was "
            "written; fit it again or take the original"
        )
    try:
        return _decode(content)
    except MALFORMED as error:
        raise StateMismatchError(
            f"{path.name} was written by another program ({shown(error)}); fit it again"
        ) from error


def digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _encode(predictor: StepPredictor) -> dict[str, Any]:
    models = predictor.models
    return {
        "provenance": dict(predictor.provenance),
        "seen": {name: sorted(values) for name, values in predictor.seen.items()},
        "loader": dict(models.loader.seconds),
        "host": None if models.host is None else _encode_host(models.host),
        "device": None if models.device is None else _encode_device(models.device),
        "calibrations": {n: _encode_offsets(table) for n, table in predictor.calibrations.items()},
        "trust": dict(predictor.trust),
        "kernel": None if predictor.kernel is None else asdict(predictor.kernel),
        "probed": {str(num): _encode_offsets(table) for num, table in predictor.probed.items()},
    }


def _decode(content: Mapping[str, Any]) -> StepPredictor:
    host, device, kernel = content["host"], content["device"], content["kernel"]
    return StepPredictor(
        models=StepModels(
            loader=LoaderRates(content["loader"]),
            host=None if host is None else _decode_host(host),
            device=None if device is None else _decode_device(device),
        ),
        calibrations={n: _decode_offsets(table) for n, table in content["calibrations"].items()},
        trust=content["trust"],
        kernel=None if kernel is None else ProbeKernel(**kernel),
        probed={int(num): _decode_offsets(table) for num, table in content["probed"].items()},
        seen={name: frozenset(values) for name, values in content["seen"].items()},
        provenance=content["provenance"],
    )


def _encode_host(model: HostModel) -> dict[str, Any]:
    total = None if model.total is None else _packed(model.total)
    return {"roofline": asdict(model.roofline), "compute": _packed(model.compute), "total": total}


def _decode_host(saved: Mapping[str, Any]) -> HostModel:
    total = None if saved["total"] is None else _unpacked(saved["total"])
    return HostModel(_decode_roofline(saved["roofline"]), _unpacked(saved["compute"]), total)


def _encode_device(model: DeviceModel) -> dict[str, Any]:
    members = [[list(columns), _packed(boosted)] for columns, boosted in model.members]
    return {"roofline": asdict(model.roofline), "members": members}


def _decode_device(saved: Mapping[str, Any]) -> DeviceModel:
    members = tuple((tuple(columns), _unpacked(text)) for columns, text in saved["members"])
    return DeviceModel(_decode_roofline(saved["roofline"]), members)


def _decode_roofline(saved: Mapping[str, Any]) -> Roofline:
    return Roofline(**{**saved, "log_coefficients": tuple(saved["log_coefficients"])})


def _packed(model: Boosted) -> str:
    return base64.b64encode(zlib.compress(model.text.encode(), 9)).decode("ascii")


def _unpacked(text: str) -> Boosted:
    return Boosted.from_text(zlib.decompress(base64.b64decode(text)).decode())


def _encode_offsets(table: Calibration) -> dict[str, Any]:
    return {
        quantity: {family: asdict(offsets) for family, offsets in by_family.items()}
        for quantity, by_family in table.items()
    }


def _decode_offsets(saved: Mapping[str, Any]) -> Calibration:
    return {
        quantity: {family: Offsets(**offsets) for family, offsets in by_family.items()}
        for quantity, by_family in saved.items()
    }
