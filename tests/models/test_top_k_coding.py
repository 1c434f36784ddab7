"""The most probable tokens of a distribution: which, in how many bytes, and what is left of the mass."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from tutelage.models.top_k_coding import decode_ids, encode_ids, padded, pick

rows_of_ids = st.lists(st.sets(st.integers(0, 300_000), min_size=1, max_size=9).map(sorted), min_size=1, max_size=8)


@given(rows_of_ids)
def test_ids_come_back(rows: list[list[int]]) -> None:
    counts = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([index for row in rows for index in row])
    assert torch.equal(decode_ids(counts, encode_ids(counts, ids)), ids)


@pytest.mark.parametrize(("step", "size"), [(127, 1), (128, 2), (16_383, 2), (16_384, 3), (2_097_151, 3)])
def test_a_difference_takes_as_many_bytes_as_it_needs(step: int, size: int) -> None:
    assert len(encode_ids(torch.tensor([2]), torch.tensor([5, 5 + step]))) == 1 + size


def chosen_by_hand(probabilities: list[float], mass: float, max_k: int) -> set[int]:
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    taken: list[int] = []
    for index in order:
        if taken and ((sum(probabilities[i] for i in taken) >= mass and mass < 1) or len(taken) == max_k):
            break
        taken.append(index)
    return set(taken)


@pytest.mark.parametrize("mass", [0.01, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("max_k", [1, 3, 7, 50])
def test_the_fewest_tokens_that_hold_the_mass_are_kept(mass: float, max_k: int) -> None:
    logp = (2 * torch.randn(20, 11, dtype=torch.float64)).log_softmax(-1)
    counts, ids, kept, tail = pick(logp, mass, max_k)
    first = 0
    for position, count in enumerate(counts.tolist()):
        mine = ids[first : first + count]
        assert set(mine.tolist()) == chosen_by_hand(logp[position].exp().tolist(), mass, max_k)
        assert torch.equal(mine, mine.sort().values)
        assert torch.equal(kept[first : first + count], logp[position, mine])
        torch.testing.assert_close(tail[position], 1 - logp[position, mine].exp().sum(), rtol=1e-9, atol=1e-14)
        first += count
    assert first == len(ids) == len(kept)


def test_a_small_tail_keeps_its_digits() -> None:
    logp = torch.tensor([[0.0, -30.0, -31.0]]).log_softmax(-1)
    *_, tail = pick(logp, 0.5, 2)
    torch.testing.assert_close(
        tail.double(), torch.tensor([-30.0, -31.0]).double().exp().sum()[None], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_under_one_another_hold_a_mass_of_one(dtype: torch.dtype) -> None:
    logp = (3 * torch.randn(6, 40)).log_softmax(-1)
    records = []
    for part in (logp[:1], logp[1:4], logp[4:]):
        counts, ids, kept, tail = pick(part, 0.9, 30)
        stream = encode_ids(counts, ids)
        records.append(
            {"counts": counts.int(), "ids": stream, "logp": kept.to(dtype), "tail": tail, "target": part[:, 3]}
        )
    ids, found, target = padded(records)
    tail = torch.cat([record["tail"] for record in records])
    assert torch.equal(target, logp[:, 3])
    assert torch.equal(ids == -1, found == -torch.inf)
    torch.testing.assert_close(found.exp().sum(-1), 1 - tail, rtol=1e-6, atol=1e-6)
    exact = torch.where(ids >= 0, logp.gather(-1, ids.clamp(min=0)), -torch.inf)
    torch.testing.assert_close(
        found, exact, rtol=0.0 if dtype == torch.float32 else 1e-2, atol=0.0 if dtype == torch.float32 else 1e-2
    )
