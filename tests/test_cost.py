"""What the ledger counts, and when."""

import resource
import sys
import time
from pathlib import Path

import pytest
import torch

from guidedgen.cost import Ledger, peak_memory_mib


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
