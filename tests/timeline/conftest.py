"""Random task graphs and timelines: `st.from_type(TaskGraph)`, `st.from_type(Timeline)`."""

from hypothesis import strategies as st

from paceline.timeline import Kind, Span, TaskGraph, Timeline

LANES = ("main", "comm")
# Multiples of 1/4 add up exactly, so tests can ask for equality. Many are zero: spans
# without length are where ties are.
DURATIONS = st.integers(0, 12).map(lambda quarters: quarters / 4)
PLACES = st.tuples(st.integers(0, 2), st.integers(0, len(LANES) - 1))


@st.composite
def runnable_graphs(draw: st.DrawFn) -> TaskGraph:
    """Items in an order that can be run: each a lone task or one whole collective."""
    items = draw(st.lists(st.lists(PLACES, min_size=1, max_size=3, unique=True), max_size=8))
    places = [place for item in items for place in item]
    item_of = [index for index, item in enumerate(items) for _ in item]
    num_tasks = len(places)
    task = st.integers(0, max(num_tasks - 1, 0))
    pairs = draw(st.lists(st.tuples(task, task), max_size=8)) if num_tasks else []
    return TaskGraph.from_columns(
        draw(st.lists(DURATIONS, min_size=num_tasks, max_size=num_tasks)),
        edges=[(a, b) for a, b in pairs if item_of[a] < item_of[b]],
        rank=[rank for rank, _ in places],
        lane=[lane for _, lane in places],
        kind=[Kind.COLLECTIVE if len(items[i]) > 1 else Kind.COMPUTE for i in item_of],
        step=[i // 3 for i in item_of],
        collective=[i if len(items[i]) > 1 else -1 for i in item_of],
        lanes=LANES,
    )


@st.composite
def spans(draw: st.DrawFn) -> Span:
    kind = draw(st.sampled_from(Kind))
    return Span(
        rank=draw(st.integers(0, 2)),
        lane=draw(st.sampled_from(LANES)),
        kind=kind,
        name=kind.name.lower(),
        start_s=float(draw(st.integers(0, 8))),
        duration_s=float(draw(st.integers(0, 4))),
        step=draw(st.integers(0, 2)),
        collective=draw(st.integers(-1, 2)) if kind == Kind.COLLECTIVE else -1,
    )


st.register_type_strategy(TaskGraph, runnable_graphs())
st.register_type_strategy(
    Timeline,
    st.lists(spans(), max_size=10).map(lambda rows: Timeline.from_spans("measured", rows)),
)
