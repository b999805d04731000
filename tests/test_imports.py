"""The house as it is drawn in docs/design.md, held against the imports of every file."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
ROOMS = (
    "timeline",
    "cost",
    "balance",
    "comm",
    "order",
    "overlap",
    "plan",
    "predict",
    "run",
    "report",
)
FRAMEWORKS = (
    "lightning",
    "transformers",
    "accelerate",
    "torchdata",
    "torch_geometric",
    "dgl",
    "jax",
    "tensorflow",
)
HEAVY = ("torch", "matplotlib", "bokeh", "rich", "lightgbm", "sklearn", "ray", *FRAMEWORKS)
# What stands beside the rooms: every room may use it.
SHARED = ("paceline", "paceline.errors", "paceline._compile", "paceline._files")
CELL = re.compile(r"`([a-z_/]+?)/?(?:\.py)?`")


def test_no_arrow_goes_against_the_drawing() -> None:
    drawn = allowed_rooms()
    wrong = []
    for file, module in imports():
        own, room = room_of(file, drawn), room_of(module, drawn)
        is_inside = f"{room}.".startswith(f"{own}.")
        if module not in SHARED and not is_inside and room not in drawn[own]:
            wrong.append(f"{file} imports {module}")
    assert wrong == []


def test_every_room_that_is_drawn_exists() -> None:
    known = "\n".join(modules())
    assert [room for room in allowed_rooms() if f"{room}.__init__" not in known] == []


def test_a_private_file_is_imported_in_its_own_room_only() -> None:
    def is_private_elsewhere(file: str, module: str) -> bool:
        folder, _, name = module.rpartition(".")
        is_private = name.startswith("_") and module not in SHARED
        return is_private and not f"{file}.".startswith(f"{folder}.")

    assert [pair for pair in imports() if is_private_elsewhere(*pair)] == []


def test_rooms_form_no_cycle() -> None:
    """A folder is a room; what its `__init__` exports from rooms inside it is no arrow."""
    arrows: dict[str, set[str]] = {}
    for file, module in imports():
        own, other = folder_of(file), folder_of(module)
        is_export = file.endswith("__init__") and other.startswith(f"{own}.")
        if own != other and not is_export and module not in SHARED:
            arrows.setdefault(own, set()).add(other)
    assert cycle_in(arrows) == []


def test_files_form_no_cycle() -> None:
    arrows: dict[str, set[str]] = {}
    for file, module in imports():
        arrows.setdefault(file, set()).add(module)
    assert cycle_in(arrows) == []


def test_no_folder_is_a_hallway_and_no_file_is_long() -> None:
    folders = [folder for folder in SOURCE.rglob("*") if len(list(folder.glob("*.py"))) > 16]
    files = [file for file in SOURCE.rglob("*.py") if file.read_text().count("\n") > 300]
    assert (folders, files) == ([], [])


@pytest.mark.parametrize(
    "statement",
    ["import paceline", *(f"import paceline.{room}" for room in ROOMS)],
)
def test_a_fresh_process_imports_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_ranks_start_without_what_few_of_them_use() -> None:
    code = (
        "import sys, paceline.torch as p; print(p.Checkpoint.__name__,"
        " 'torch.distributed.checkpoint' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["Checkpoint", "False"]


def test_torch_names_load_what_they_need_and_no_more() -> None:
    code = (
        "import sys, paceline.torch as p; heavy = ('numba', 'rich', 'torch.distributed.fsdp',"
        " 'sympy', 'paceline.torch.comm', 'paceline.torch.checkpoint', 'paceline.predict');"
        " print([name for name in heavy if name in sys.modules]);"
        " all(getattr(p, name) for name in p.__all__);"
        " print('torch.distributed.fsdp' in sys.modules, callable(p.guard), p.Lanes.__module__)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["[]", "False", "True", "paceline.torch.overlap._lanes"]


def allowed_rooms() -> dict[str, set[str]]:
    """Read the tables of docs/design.md: each room, and the rooms that it may import."""
    drawn: dict[str, set[str]] = {}
    for line in (ROOT / "docs/design.md").read_text(encoding="utf-8").splitlines():
        cells = line.split("|")
        if not line.startswith("| `") or len(cells) != 5:
            continue
        rooms, above = rooms_in(cells[1]), set(drawn)
        drawn |= {room: above if "all above" in cells[3] else rooms_in(cells[3]) for room in rooms}
    return drawn


def rooms_in(cell: str) -> set[str]:
    return {f"paceline.{name.replace('/', '.')}" for name in CELL.findall(cell)}


def room_of(module: str, drawn: dict[str, set[str]]) -> str:
    """Return the smallest room that holds `module`; what is shared is a room of its own."""
    around = [room for room in drawn if f"{module}.".startswith(f"{room}.")]
    assert around or module in SHARED or module == "paceline.__init__", f"{module} is not drawn"
    return max(around, key=len, default="paceline")


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
        for path in sorted(SOURCE.rglob("*.py"))
    }


def imports() -> Iterator[tuple[str, str]]:
    """Yield each file with each module of ours that it imports, anywhere in it."""
    known = modules()
    for file, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paceline"):
                for name in node.names:
                    inner = f"{node.module}.{name.name}"
                    is_module = inner in known or f"{inner}.__init__" in known
                    yield file, inner if is_module else str(node.module)


def folder_of(module: str) -> str:
    path = SOURCE / module.replace(".", "/")
    return module if path.is_dir() else module.rpartition(".")[0]


def cycle_in(arrows: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("statement", ["import paceline.torch", "from paceline import DataLoader"])
def test_without_torch_one_line_says_what_to_install(statement: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"try: {statement}\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith("MissingExtraError paceline.torch needs PyTorch; install it")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_without_a_framework_one_line_says_what_to_install(framework: str) -> None:
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {framework!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"try: import paceline.integrations.{framework}\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"MissingExtraError paceline.integrations.{framework} needs ")
    assert line.endswith(f"install it with: pip install 'paceline[{framework}]'")
