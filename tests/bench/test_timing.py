"""The harness: turns, medians, clocks, labels, and cases that refuse to time a wrong result."""

from __future__ import annotations

import itertools

import pytest
import torch

from infodisent import ops
from infodisent.bench import cases, labels, peers, pools, shapes, timing
from infodisent.testing import WrongResultError


def test_implementations_take_turns():
    order = []
    clock = itertools.count()

    def tick(run):
        run()
        return next(clock)

    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = timing.samples(runs, 3, tick, warmup=2)
    assert "".join(order) == "aabb" + "ab" * 3
    assert seconds == {"a": [0, 2, 4], "b": [1, 3, 5]}
    assert timing.medians(runs, 3, tick, warmup=0) == {"a": 8, "b": 9}


def test_host_clock(monkeypatch):
    now = itertools.count()
    waits = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(0))
    calls = []
    assert timing.host_clock(calls=4)(lambda: calls.append(0)) == 0.25
    assert (len(calls), len(waits)) == (4, 0)
    assert timing.host_clock("cuda")(lambda: None) == 1
    assert len(waits) == 2  # before the first look at the clock and before the second


@pytest.fixture
def device(monkeypatch):
    """A device that is busy for so many seconds as `hold` says, and what was done with it."""

    class Device:
        done: list[str] = []  # noqa: RUF012
        busy = 0.0
        launching = 0.0  # seconds of the host for the run

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Device.done.append("record")

        def query(self):
            return Device.launching > Device.busy

        def elapsed_time(self, end):
            return 1500.0  # milliseconds

    def hold(seconds):
        Device.done.append("hold")
        Device.busy = 1e-4 + seconds

    def flush():
        Device.done.append("flush")
        Device.busy = 1e-4

    Device.done = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: Device.done.append("wait"))
    monkeypatch.setattr(timing, "flush_cache", flush)
    monkeypatch.setattr(timing, "hold", hold)
    return Device


def test_events_are_around_the_run_alone_after_the_flush(device):
    assert timing.event_clock()(lambda: device.done.append("run")) == 1.5
    assert device.done == ["flush", "record", "run", "record", "wait"]
    device.done.clear()
    assert timing.event_clock(0.5)(lambda: device.done.append("run")) == 1.5
    assert device.done == ["flush", "hold", "record", "run", "record", "wait"]


def test_a_device_that_waited_for_the_host_is_timed_again(device):
    device.launching = 1.5e-3
    clock = timing.event_clock()
    run = lambda: device.done.append("run")  # noqa: E731
    assert clock(run) == 1.5
    assert device.done.count("run") == 4  # none, 0.5, 1 and 2 ms ahead
    assert clock.ahead == 2e-3
    assert not clock.waits
    device.done.clear()
    clock(run)
    assert device.done.count("run") == 1
    device.launching = 1e9  # it waits for the device itself
    clock(run)
    assert clock.waits == {run}
    device.done.clear()
    ahead = clock.ahead
    clock(run)
    assert (device.done.count("run"), clock.ahead) == (1, ahead)


def test_holding_lasts_long_enough(monkeypatch):
    cycles = []
    monkeypatch.setattr(torch.cuda, "_sleep", cycles.append)
    timing.hold(1e-3)
    assert cycles[0] / 2.5e9 >= 1e-3


def test_inputs_rotate():
    x = torch.zeros(1000)
    inputs = timing.like(x, total_bytes=12_000)
    assert len(inputs) == 3
    assert inputs[0] is x
    assert len(timing.like(x, 10)) == 1
    assert len(timing.like(x)) == 8
    seen = []
    run = timing.rotating(lambda t: seen.append(t), inputs)
    for _ in range(4):
        run()
    assert [inputs.index(t) if t is x else t for t in seen] == [0, inputs[1], inputs[2], 0]


def test_one_table():
    assert set(shapes.EACH_SIZE) <= set(shapes.SHAPES)
    sizes = [shapes.SHAPES[name] for name in shapes.EACH_SIZE]
    assert len(set(sizes)) == len(sizes)
    assert shapes.SHAPES["resnet50"] == (2048, 7, 7)
    assert shapes.CHANNELS == (512, 768, 1024, 1280, 1536, 2048)
    assert shapes.OTHERS["vit_base_patch16_224, class token"].pixels == 197
    titles = [size.title for size in (shapes.AT_224 | shapes.OTHERS).values()]
    assert len(set(titles)) == len(titles)


TINY = {
    "l2": shapes.PoolSize("L2", ("l2",), 5, 9, 12, 3, 2),
    "cosine": shapes.PoolSize("cosine", ("cosine",), 5, 9, 12, 3, 2),
    "both": shapes.PoolSize("both", ("dot", "cosine"), 5, 9, 12, 3, 2),
    "softmax": shapes.PoolSize("softmax", ("softmax",), 5, None, 12, 3, 2),
    "alignment": shapes.PoolSize("alignment", ("alignment",), 5, None, 12, 3, 2),
}


@pytest.fixture
def tiny(monkeypatch):
    for module in (cases, shapes):
        monkeypatch.setattr(module, "SHAPES", {"resnet34": (12, 3, 2)})
    for module in (cases, pools, shapes):
        monkeypatch.setattr(module, "POOLS", TINY)


@pytest.mark.parametrize("mode", [*cases.MODES, "backward"])
@pytest.mark.parametrize("op", [op for op in cases.OPS if op not in pools.OPS])
def test_cases(tiny, op, mode):
    case = cases.Case(op, "resnet34", 2, mode)
    functions = cases.peers(case)
    functions.pop("torch.compile", None)  # half a minute of compiling
    assert next(iter(functions)) == "infodisent"
    errors = cases.check(case, functions)
    assert set(errors) == {name for name in functions if not name.endswith("†")}
    for function in functions.values():
        cases.runner(case, function)()


@pytest.mark.parametrize("mode", [*cases.MODES, "backward"])
@pytest.mark.parametrize("shape", TINY)
def test_cases_of_prototypes(tiny, shape, mode, monkeypatch):
    monkeypatch.setattr(cases.torch, "compile", lambda function: function)
    case = cases.Case(TINY[shape].op, shape, 5, mode)
    functions = cases.peers(case)
    assert next(iter(functions)) == "infodisent"
    assert set(cases.check(case, functions)) == set(functions)
    for function in functions.values():
        cases.runner(case, function)()
    assert labels.served_by(cases.runner(case, functions["infodisent"]))
    ours = functions["infodisent"]

    def wrong(*arguments):
        return 1.01 * ours(*arguments)

    with pytest.raises(WrongResultError, match="wrong is off by"):
        cases.check(case, {"wrong": wrong})
    if mode == "forward":
        return

    def wrong_gradient(x, *more):
        return ours(x.detach() + (x - x.detach()) * 1.1, *more)

    with pytest.raises(WrongResultError, match="wrong: gradient of x is off by"):
        cases.check(case, {"wrong": wrong_gradient})


def test_compare_prototypes(tiny):
    (case,) = cases.cases(["softmax_pool"], list(TINY), modes=["forward"])
    assert (case.shape, case.batch, case.size) == ("softmax", 5, (12, 3, 2))
    made = cases.cases(["similarity_pool", "rotate_pool"], ["both", "resnet34"], 4, ["forward"])
    assert [(c.op, c.shape, c.batch) for c in made] == [
        ("similarity_pool", "both", 5),
        ("rotate_pool", "resnet34", 4),
    ]
    for op, shape in (("rotate_pool", "both"), ("softmax_pool", "both")):
        with pytest.raises(ValueError, match=f"no shape of {op} among both"):
            cases.cases([op], [shape])


def test_compare(tiny, monkeypatch):
    monkeypatch.setattr(cases.torch, "compile", lambda function: function)
    row = cases.compare(cases.Case("rotate_pool", "resnet34", 2, "forward"), rounds=2)
    assert row["size"] == [12, 3, 2]
    assert row["speedup"]["infodisent"] == 1
    assert set(row["milliseconds"]) == set(row["speedup"]) == {*row["error"], "GEMM alone†"}
    plain = ops.rotate_pool
    wrong = lambda x, u: plain(x, u)._replace(pooled=1.01 * plain(x, u).pooled)  # noqa: E731
    monkeypatch.setattr(ops, "rotate_pool", wrong)
    with pytest.raises(WrongResultError, match="infodisent is off by 1"):
        cases.compare(cases.Case("rotate_pool", "resnet34", 2, "forward"), rounds=2)


def test_every_pool_is_the_same():
    x, u = torch.randn(3, 8, 4, 5), torch.randn(8, 8)
    wanted = peers.eager(x, u)
    for pool in (
        peers.pooled,
        peers.eager_values,
        peers.conv_max_pool,
        peers.product_aminmax,
        peers.row_product_aminmax,
        peers.by("sparse", peers.pooled),
    ):
        torch.testing.assert_close(pool(x, u), wanted)
    torch.testing.assert_close(peers.product_alone()(x, u), peers.row_product(x, u))
    a = 0.1 * torch.randn(8, 8)
    torch.testing.assert_close(peers.eigenvalues(a), torch.matrix_exp(a - a.mT))
    assert torch.equal(
        peers.orthogonal(8, "matrix_exp", "cpu")(a).diagonal() > 0, torch.ones(8) > 0
    )


def step(backend: str):
    """Forward in a block that chooses, backward outside of it."""
    x, u = torch.randn(2, 6, 3, 3), torch.randn(6, 6, requires_grad=True)
    return lambda: torch.autograd.grad(peers.by(backend, peers.pooled)(x, u).sum(), u)


def test_a_label_is_what_runs():
    labels.check_served("sparse", step("sparse"), ("sparse",))
    a = torch.randn(6, 6, requires_grad=True)
    rotation = peers.by("sparse", ops.rotation)
    labels.check_served("it", lambda: torch.autograd.grad(rotation(a).sum(), a), ("sparse",))
    with pytest.raises(ValueError, match="no backend is called 'fast'"):
        labels.check_served("it", step("sparse"), ("fast",))
    with pytest.raises(WrongResultError, match="it: ran no backend, not sparse"):
        labels.check_served("it", lambda: None, ("sparse",))


def test_a_wrong_label_is_found(monkeypatch):
    with pytest.raises(WrongResultError, match="it: ran rotate_pool by sparse, rotate_pool_b"):
        labels.check_served("it", step("sparse"), ("native",))
    # the forward of one backend and the backward of another, as when backward asked again
    sparse, reference = (type(labels.BY_NAME[name]) for name in ("sparse", "reference"))
    backward = sparse.rotate_pool_backward
    other = lambda self, *a: backward(self, *a)  # noqa: E731
    monkeypatch.setattr(reference, "rotate_pool_backward", other)
    handing_on = lambda self, *a: labels.BY_NAME["reference"].rotate_pool_backward(*a)  # noqa: E731
    monkeypatch.setattr(sparse, "rotate_pool_backward", handing_on)
    with pytest.raises(WrongResultError, match="it: ran rotate_pool_backward by reference, not"):
        labels.check_served("it", step("sparse"), ("sparse",))


def test_what_was_replaced_is_put_back():
    before = [vars(type(b)).get("rotate_pool") for b in labels.BY_NAME.values()]
    with labels.served() as calls:
        step("sparse")()
    assert calls == [("rotate_pool", "sparse"), ("rotate_pool_backward", "sparse")]
    step("sparse")()
    assert len(calls) == 2
    assert before == [vars(type(b)).get("rotate_pool") for b in labels.BY_NAME.values()]
