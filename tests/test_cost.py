"""What the ledger counts, and when."""

import re
import resource
import sys
import time
from pathlib import Path

import pytest
import torch

from guidedgen.basics import cost
from guidedgen.basics.cost import Ledger, peak_memory_mib, reset_peak_memory, wait_for
from guidedgen.runs import composition, experiment, preparation, report


class Clock:
    """The seconds that a test says have passed."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class Cuda:
    """torch.cuda of a machine with two GPUs that work behind the caller's back: a call returns at once, its work takes a second."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.behind, self.waited, self.reset = clock, 0, [], []

    def call(self) -> None:
        self.behind += 1

    def synchronize(self, device: object = None) -> None:
        self.waited.append(str(device))
        self.clock.wait(self.behind)
        self.behind = 0

    def reset_peak_memory_stats(self, device: object = None) -> None:
        self.reset.append(str(device))

    def max_memory_allocated(self, device: object = None) -> int:
        return {"cuda:0": 2, "cuda:1": 7}[str(device)] * 2**20


@pytest.fixture
def cuda(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda(clock)
    for name in ("synchronize", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    return cuda


def test_counts_are_the_four_counters() -> None:
    assert Ledger().counts() == {"nfe": 0, "nfe_backward": 0, "decodes": 0, "reward_calls": 0}
    assert Ledger(nfe=4, nfe_backward=3, decodes=2, reward_calls=1).counts() == {
        "nfe": 4, "nfe_backward": 3, "decodes": 2, "reward_calls": 1,
    }  # fmt: skip


def test_backward_counts_when_a_gradient_is_taken_and_as_often() -> None:
    ledger, x = Ledger(), torch.ones(3, requires_grad=True)
    y = 2 * x
    ledger.count_backward(y, 3)
    assert ledger.nfe_backward == 0  # nothing was differentiated yet
    (gradient,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert ledger.nfe_backward == 3
    torch.testing.assert_close(gradient, torch.full((3,), 2.0))  # counting changes no gradient
    torch.autograd.grad(y.sum(), x)
    assert ledger.nfe_backward == 6


def test_an_output_off_the_path_is_not_counted() -> None:
    ledger, x = Ledger(), torch.ones(3, requires_grad=True)
    used, unused = 2 * x, 3 * x
    ledger.count_backward(used, 1)
    ledger.count_backward(unused, 10)
    torch.autograd.grad(used.sum(), x)
    assert ledger.nfe_backward == 1


def test_outputs_without_gradient_are_let_through() -> None:
    ledger = Ledger()
    with torch.no_grad():
        ledger.count_backward(torch.ones(3, requires_grad=True) * 2, 3)
    assert ledger.nfe_backward == 0


def test_time_adds_up_by_kind_also_where_the_block_fails() -> None:
    ledger = Ledger()
    started = time.perf_counter()
    for _ in range(2):
        with ledger.timed("denoise"):
            time.sleep(0.02)
    with pytest.raises(ZeroDivisionError), ledger.timed("decode"):
        time.sleep(0.02)
        raise ZeroDivisionError
    elapsed = time.perf_counter() - started
    assert set(ledger.seconds) == {"denoise", "decode"}
    assert ledger.seconds["denoise"] >= 0.04
    assert ledger.seconds["decode"] >= 0.02
    assert sum(ledger.seconds.values()) <= elapsed


def test_a_block_inside_another_is_counted_once(clock: Clock) -> None:
    """As where a backward pass computes the network's steps again."""
    ledger = Ledger()
    with ledger.timed("backward"):
        clock.wait(1)
        with ledger.timed("denoise"):
            clock.wait(10)
            with ledger.timed("denoise"):
                clock.wait(100)
        clock.wait(1000)
        with pytest.raises(ZeroDivisionError), ledger.timed("decode"):
            clock.wait(10000)
            raise ZeroDivisionError
    clock.wait(100000)
    with ledger.timed("decode"):
        clock.wait(1000000)
    assert ledger.seconds == {"backward": 1001, "denoise": 110, "decode": 1010000}


def test_what_is_computed_again_on_the_way_back_is_no_backward_time() -> None:
    """By a real checkpoint: forward twice, backward once."""
    ledger, x = Ledger(), torch.ones(3, requires_grad=True)

    def network(x: torch.Tensor) -> torch.Tensor:
        with ledger.timed("denoise"):
            time.sleep(0.02)
            return x.square()

    started = time.perf_counter()
    y = torch.utils.checkpoint.checkpoint(network, x, use_reentrant=False)
    with ledger.timed("backward"):
        torch.autograd.grad(y.sum(), x)
    elapsed = time.perf_counter() - started
    assert ledger.seconds["denoise"] >= 0.04 and sum(ledger.seconds.values()) <= elapsed


def test_a_gpu_is_waited_for_where_the_kind_of_work_changes_if_asked(cuda: Cuda, clock: Clock) -> None:
    """A second of each of three kinds, the second one inside the first: counted apart where the device is waited for."""

    def work(ledger: Ledger) -> dict[str, float]:
        cuda.call()  # before: not counted
        with ledger.timed("denoise"):
            cuda.call()
            with ledger.timed("reward"):
                cuda.call()
        with ledger.timed("decode"):
            cuda.call()
        return dict(ledger.seconds)

    assert work(Ledger()) == {"denoise": 0, "reward": 0, "decode": 0} and not cuda.waited
    cuda.synchronize("cuda:0")
    assert work(Ledger(device="cuda:1")) == {"denoise": 1, "reward": 1, "decode": 1}
    assert set(cuda.waited[1:]) == {"cuda:1"}


def test_the_device_in_use_is_asked(cuda: Cuda) -> None:
    for device in ("cuda:1", torch.device("cuda:1")):
        wait_for(device)
        reset_peak_memory(device)
        assert peak_memory_mib(device) == 7
    assert cuda.waited == cuda.reset == ["cuda:1"] * 2
    wait_for("cpu")
    reset_peak_memory("cpu")
    assert len(cuda.waited) == len(cuda.reset) == 2


def test_the_parts_of_a_profile_are_the_whole(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, started = Ledger(), clock()
    for kind, seconds in (("load", 2), ("text", 1), ("decode", 3), ("reward", 5), ("judge", 4)):
        with ledger.timed(kind):
            clock.wait(seconds)
    with ledger.timed("backward"):
        clock.wait(15)
        with ledger.timed("denoise"):
            clock.wait(60)
    clock.wait(10)
    report.show_profile(ledger, clock() - started)
    shares = dict(re.findall(r"(\w[\w ]*\w) .*?(-?\d+\.\d) %", capsys.readouterr().out))
    assert shares == {
        "text": "1.0", "denoise": "60.0", "decode": "3.0", "encode": "0.0", "reward": "5.0", "backward": "15.0", "judge": "4.0",
        "in networks": "88.0", "loading": "2.0", "elsewhere": "10.0",
    }  # fmt: skip


def test_ledgers_share_nothing() -> None:
    first, second = Ledger(), Ledger()
    with first.timed("decode"):
        pass
    assert second.seconds == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_on_a_cpu_is_the_process_s_in_mib() -> None:
    ballast = torch.ones(64 * 2**18)  # 64 MiB, touched
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    peak = peak_memory_mib("cpu")
    assert peak >= 0.99 * resident > 64
    del ballast
    assert peak_memory_mib(torch.device("cpu")) >= peak  # a peak does not come down


def test_a_batch_is_timed_to_its_end_on_the_device_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is a minute behind, until it is waited for: once a batch, when its peak memory is reset."""
    asked: list[tuple[str, object]] = []
    late, clock = [0.0], time.perf_counter

    def waited(device: object) -> None:
        asked.append(("wait", device))
        late[0] += 60

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])
    monkeypatch.setattr(cost, "wait_for", waited)
    monkeypatch.setattr(cost, "reset_peak_memory", lambda device: asked.append(("reset", device)))
    options = [
        "method=base",
        "reference=none",
        "scheduler.num_steps=2",
        "dataset.limit=3",
        "batch_size=2",
        "tracker=none",
        "device=cpu",
    ]
    job = preparation.prepare(composition.composed([f"outputs={tmp_path}", *options]))
    experiment.run(job)
    assert asked == [("reset", "cpu"), ("wait", "cpu")] * 2
    assert [record.seconds >= 60 / size for record, size in zip(job.folder.records().values(), (2, 2, 1), strict=True)] == [
        True
    ] * 3
