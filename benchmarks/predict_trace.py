"""Claim: any of 60 common models by name is traced in under 10 s and under 2 GB of memory.

Needs torchvision, timm and transformers beside PyTorch; nothing is downloaded: weights are
random, and the language models are made from their configurations.
"""

import multiprocessing
import resource
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter, process_time
from typing import Any

import torch
from _record import finish, parser, spread

from paceline.predict import estimate_memory
from paceline.torch.predict import trace_workload

LIMIT_S, LIMIT_BYTES, KILL_S = 10.0, 2_000_000_000, 180.0
BATCH_SIZE, SIDE, NUM_TOKENS = 32, 224, 128
Build = Callable[[], Any]

TORCHVISION = (
    "alexnet", "vgg16", "resnet18", "resnet50", "resnet152", "wide_resnet50_2", "resnext50_32x4d",
    "densenet121", "squeezenet1_1", "shufflenet_v2_x1_0", "mobilenet_v2", "mobilenet_v3_large",
    "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_8gf", "convnext_tiny",
    "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
)  # fmt: skip
TIMM = (
    "resnet50", "resnext50_32x4d", "efficientnet_b0", "tf_efficientnetv2_s",
    "mobilenetv3_large_100",
    "regnety_032", "convnext_base", "convnextv2_tiny", "vit_base_patch16_224",
    "vit_large_patch16_224", "deit_small_patch16_224", "swin_base_patch4_window7_224",
    "mixer_b16_224", "resmlp_24_224", "mobilevit_s", "cait_s24_224", "beit_base_patch16_224",
    "coatnet_0_rw_224", "poolformer_s12", "maxvit_tiny_rw_224", "nfnet_f0",
)  # fmt: skip
# Of transformers: the name of the configuration and of the class that is made from it.
TRANSFORMERS = (
    ("GPT2", "LMHeadModel"), ("GPTNeo", "ForCausalLM"), ("GPTNeoX", "ForCausalLM"),
    ("OPT", "ForCausalLM"), ("Bloom", "ForCausalLM"), ("Llama", "ForCausalLM"),
    ("Mistral", "ForCausalLM"), ("Qwen2", "ForCausalLM"), ("Gemma", "ForCausalLM"),
    ("Phi", "ForCausalLM"), ("Bert", "ForMaskedLM"), ("Roberta", "ForMaskedLM"),
    ("DistilBert", "ForMaskedLM"), ("Albert", "ForMaskedLM"), ("Electra", "ForMaskedLM"),
    ("DebertaV2", "ForMaskedLM"), ("MPNet", "ForMaskedLM"), ("T5", "ForConditionalGeneration"),
    ("Bart", "ForConditionalGeneration"), ("Mamba", "ForCausalLM"),
)  # fmt: skip


def with_torchvision() -> None:
    """Import torchvision, also where its build for CUDA does not load beside PyTorch for CPUs.

    Its Python code then misses two operators of detection, which no model here calls.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_module("torchvision")


def vision(name: str) -> Build:
    library = import_module("torchvision")
    return lambda: library.models.get_model(name, weights=None)


def timm_model(name: str) -> Build:
    library = import_module("timm")
    return lambda: library.create_model(name, pretrained=False, drop_path_rate=0.1)


def language_model(name: str, kind: str) -> Build:
    library = import_module("transformers")
    config = getattr(library, f"{name}Config")()
    tokens = torch.zeros(1, NUM_TOKENS, dtype=torch.int64)
    inputs = {"input_ids": tokens, "labels": tokens}
    return lambda: (getattr(library, f"{name}{kind}")(config), inputs)


def all_models() -> dict[str, tuple[Callable[..., Build], tuple[str, ...]]]:
    models: dict[str, tuple[Callable[..., Build], tuple[str, ...]]] = {}
    models |= {f"torchvision {name}": (vision, (name,)) for name in TORCHVISION}
    models |= {f"timm {name}": (timm_model, (name,)) for name in TIMM}
    return models | {
        f"transformers {name}{kind}": (language_model, (name, kind)) for name, kind in TRANSFORMERS
    }


def trace_in_child(name: str, maker: Callable[..., Build], arguments: tuple[str, ...]) -> Any:
    """Trace in a process of its own, forked where the libraries are imported already."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=send_trace, args=(theirs, maker, arguments))
    child.start()
    theirs.close()
    try:
        row = ours.recv() if ours.poll(KILL_S) else {"failure": f"ended after {KILL_S} s"}
    except EOFError:
        row = {"failure": "its process ended"}
    child.kill()
    child.join()
    return {"model": name, **row}


def send_trace(pipe: Any, maker: Callable[..., Build], arguments: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    shape = None if maker is language_model else (3, SIDE, SIDE)
    begin, begin_cpu = perf_counter(), process_time()
    try:
        work = trace_workload(maker(*arguments), input_shape=shape, batch_size=BATCH_SIZE)
    except Exception as error:
        pipe.send({"failure": f"{type(error).__name__}: {error}"[:300]})
        return
    pipe.send({
        "failure": "",
        "wall_s": perf_counter() - begin,
        "processor_s": process_time() - begin_cpu,
        # With PyTorch and the three libraries, before the trace begins already.
        "peak_resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "family": work.family,
        "num_params": work.num_params,
        "forward_flops_per_example": work.forward_flops_per_example,
        "predicted_peak_bytes": estimate_memory(work).peak,
    })  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    traced = [row for row in rows if not row["failure"]]
    wall, processor, resident = (
        [row[key] for row in traced] for key in ("wall_s", "processor_s", "peak_resident_bytes")
    )
    return {
        "num_models": len(rows),
        "num_traced": len(traced),
        "failures": {row["model"]: row["failure"] for row in rows if row["failure"]},
        "wall_s": {**spread(wall), "worst": max(wall)},
        "processor_s": {**spread(processor), "worst": max(processor)},
        "worst_peak_resident_bytes": max(resident),
        "num_within_limits": sum(
            row["wall_s"] < LIMIT_S and row["peak_resident_bytes"] < LIMIT_BYTES for row in traced
        ),
        "num_within_limits_by_processor_time": sum(
            row["processor_s"] < LIMIT_S and row["peak_resident_bytes"] < LIMIT_BYTES
            for row in traced
        ),
    }


def main() -> None:
    made = parser((__doc__ or "").partition("\n")[0])
    made.add_argument("--only", default="", help="models whose name has this in it")
    options = made.parse_args()
    with_torchvision()
    missing = [name for name in ("timm", "transformers") if find_spec(name) is None]
    if missing:
        raise SystemExit(f"install {' and '.join(missing)} first, beside torchvision")
    for library in ("timm", "transformers"):
        import_module(library)
    chosen = {name: made for name, made in all_models().items() if options.only in name}
    rows = []
    for name, (maker, arguments) in chosen.items():
        rows.append(trace_in_child(name, maker, arguments))
        if not options.json:
            print(rows[-1], flush=True)
    result = {"rows": rows, **summary(rows), "batch_size": BATCH_SIZE, "intra_op_threads": 1}
    finish("predict_trace", options, result, "torch", "torchvision", "timm", "transformers")


if __name__ == "__main__":
    main()
