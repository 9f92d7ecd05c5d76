"""A stream is a function of its key and its particle, and of nothing else."""

import hashlib

import numpy as np
import pytest
import torch

from guidedgen.basics.noise import Noise, generator, stream

SHAPE = (2, 3, 3)


def test_order_and_batch_do_not_matter() -> None:
    keys = ["0/cat", "1/cat", "0/dog", "7/a-b"]
    whole = Noise(keys).draw(2, SHAPE)
    assert whole.shape == (4, 2, *SHAPE)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(Noise(keys[::-1]).draw(2, SHAPE).flip(0), whole, rtol=0, atol=0)
    for i, key in enumerate(keys):
        torch.testing.assert_close(Noise([key]).draw(2, SHAPE)[0], whole[i], rtol=0, atol=0)


def test_later_draws_do_not_depend_on_neighbours_either() -> None:
    alone, together = Noise(["b"]), Noise(["a", "b", "c"])
    for _ in range(3):
        torch.testing.assert_close(alone.draw(1, SHAPE)[0], together.draw(1, SHAPE)[1], rtol=0, atol=0)


def test_fewer_particles_are_a_prefix() -> None:
    few, many = Noise(["a", "b"]), Noise(["a", "b"])
    for _ in range(3):
        torch.testing.assert_close(few.draw(2, SHAPE), many.draw(5, SHAPE)[:, :2], rtol=0, atol=0)


def test_the_particles_drawn_between_leave_the_first_alone() -> None:
    """A method may widen its search for a while; particle 0 goes on where the unguided run would."""
    steady, changing = Noise(["a"]), Noise(["a"])
    for particles in (1, 4, 2, 1):
        torch.testing.assert_close(steady.draw(1, SHAPE)[:, 0], changing.draw(particles, SHAPE)[:, 0], rtol=0, atol=0)


def test_a_stream_goes_on() -> None:
    """Draws of one particle follow each other in its generator."""
    noise = Noise(["a"])
    first, second = noise.draw(1, SHAPE), noise.draw(1, SHAPE)
    assert not torch.equal(first, second)
    numbers = stream("a", 0)
    for drawn in (first, second):
        torch.testing.assert_close(drawn[0, 0], torch.from_numpy(numbers.standard_normal(SHAPE, dtype="float32")), rtol=0, atol=0)


def test_different_keys_differ() -> None:
    keys = [f"{seed}/{task}" for seed in range(20) for task in ("cat", "dog", "cat-2")]
    draws = Noise(keys).draw(3, (4,)).flatten(0, 1)
    assert len(draws.unique(dim=0)) == 180


def test_the_seed_is_the_hash_of_the_text() -> None:
    """The rule as documented, computed again: changing it changes every image."""
    seed = int.from_bytes(hashlib.sha256(b"3/a-cat-51e46741/1").digest()[:7], "big")
    expected = torch.randn(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(torch.randn(5, generator=generator("3/a-cat-51e46741", 1)), expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.randn(5, generator=generator(3, "a-cat-51e46741", 1)), expected, rtol=0, atol=0)


def test_the_streams_of_samples_are_keyed_by_128_bits_of_the_hash() -> None:
    """The rule computed anew, as above."""
    key = int.from_bytes(hashlib.sha256(b"3/a-cat-51e46741/1").digest()[:16], "big")
    expected = np.random.Generator(np.random.Philox(key=key)).standard_normal(5, dtype=np.float32)
    assert np.array_equal(Noise(["3/a-cat-51e46741"]).draw(2, (5,))[0, 1].numpy(), expected)
    assert np.array_equal(stream(3, "a-cat-51e46741", 1).standard_normal(5, dtype=np.float32), expected)


def test_draws_are_standard_normal_and_independent() -> None:
    n = 40_000
    x = Noise(["a", "b"]).draw(2, (n,)).double().flatten(0, 1)  # 4 streams
    error = n**-0.5
    assert x.mean(1).abs().max() < 4.5 * error
    assert (x.var(1) - 1).abs().max() < 4.5 * 2**0.5 * error
    assert (x.pow(3).mean(1)).abs().max() < 4.5 * 15**0.5 * error
    assert (x.pow(4).mean(1) - 3).abs().max() < 4.5 * 96**0.5 * error
    assert torch.corrcoef(x).triu(1).abs().max() < 4.5 * error


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dtype_is_a_cast_of_the_same_numbers(dtype: torch.dtype) -> None:
    torch.testing.assert_close(Noise(["a"], dtype=dtype).draw(2, SHAPE), Noise(["a"]).draw(2, SHAPE).to(dtype), rtol=0, atol=0)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = torch.random.get_rng_state()
    first = Noise(["a"]).draw(1, SHAPE)
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.equal(Noise(["a"]).draw(1, SHAPE), first)


# Numbers between 0 and 1, forks and subsets


def test_uniform_numbers_are_in_the_unit_interval_and_a_function_of_their_streams() -> None:
    numbers = Noise(["a", "b"]).uniform(20_000)
    assert numbers.shape == (2, 20_000) and numbers.dtype == torch.float64
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
    for k in (1, 2, 3):  # moments 1 / (k + 1), of variance 1 / (2k + 1) - 1 / (k + 1)^2
        error = ((1 / (2 * k + 1) - 1 / (k + 1) ** 2) / 20_000) ** 0.5
        assert (numbers.pow(k).mean(1) - 1 / (k + 1)).abs().max() < 4.5 * error
    assert abs(float(torch.corrcoef(numbers)[0, 1])) < 4.5 * 20_000**-0.5
    assert torch.equal(Noise(["b"]).uniform(3)[0], numbers[1, :3])
    assert float(numbers[1, 2]) == stream("b", 2).random()


def test_uniform_and_normal_draws_follow_each_other() -> None:
    noise, numbers = Noise(["a"]), stream("a", 0)
    for _ in range(2):
        assert float(noise.uniform(1)) == numbers.random()
        assert np.array_equal(noise.draw(1, SHAPE)[0, 0].numpy(), numbers.standard_normal(SHAPE, dtype=np.float32))


def test_a_fork_leaves_the_chain_s_noise_as_it_was() -> None:
    plain, forked = Noise(["a", "b"]), Noise(["a", "b"])
    forked.draw(1, SHAPE), plain.draw(1, SHAPE)
    fork = forked.fork("select")
    fork.draw(3, SHAPE), fork.uniform(5)
    assert torch.equal(forked.draw(2, SHAPE), plain.draw(2, SHAPE))


def test_a_fork_is_a_function_of_its_purpose_and_not_of_what_was_drawn() -> None:
    early, late = Noise(["a", "b"]), Noise(["a", "b"])
    late.draw(4, SHAPE)
    assert torch.equal(early.fork("select").draw(2, SHAPE), late.fork("select").draw(2, SHAPE))
    draws = [
        noise.draw(2, (4,)) for noise in (Noise(["a", "b"]), early.fork("renoise"), early.fork("select"), early.fork("x").fork("y"))
    ]
    assert len(torch.cat(draws).flatten(0, 1).unique(dim=0)) == 16
    assert torch.equal(
        early.fork("select").draw(1, (4,))[1, 0], torch.from_numpy(stream("b/select", 0).standard_normal(4, dtype=np.float32))
    )


def test_forks_and_subsets_keep_the_dtype() -> None:
    noise = Noise(["a", "b"], dtype=torch.float64)
    assert noise.fork("x").draw(1, SHAPE).dtype == noise.subset([1]).draw(1, SHAPE).dtype == torch.float64


def test_a_subset_goes_on_where_the_whole_stands_and_the_whole_after_it() -> None:
    whole, plain = Noise(["a", "b", "c"]), Noise(["a", "b", "c"])
    whole.draw(2, SHAPE), plain.draw(2, SHAPE)
    second, third = plain.draw(2, SHAPE), plain.draw(2, SHAPE)
    assert torch.equal(whole.subset([2, 0]).draw(2, SHAPE), second[[2, 0]])
    after = whole.draw(2, SHAPE)
    assert torch.equal(after[1], second[1])
    assert torch.equal(after[[0, 2]], third[[0, 2]])


def test_a_subset_s_forks_are_those_of_its_samples() -> None:
    whole = Noise(["a", "b", "c"])
    assert torch.equal(whole.subset([2, 1]).fork("x").draw(2, SHAPE), whole.fork("x").draw(2, SHAPE)[[2, 1]])
    assert torch.equal(whole.subset([1]).uniform(2), Noise(["b"]).uniform(2))
