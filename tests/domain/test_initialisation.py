import pytest
import torch

from smallgpt.domain.initialisation import RMS, sinusoidal_positions


@pytest.mark.parametrize(("block_size", "n_embd"), [(128, 256), (7, 33)])  # also a width that is odd
def test_the_table_has_its_shape_and_scale(block_size: int, n_embd: int) -> None:
    table = sinusoidal_positions(block_size, n_embd)
    assert table.shape == (block_size, n_embd)
    assert table.square().mean().sqrt().item() == pytest.approx(RMS, rel=0.05)


def test_neighbours_are_alike_and_the_distance_alone_decides_how_much() -> None:
    table = torch.nn.functional.normalize(sinusoidal_positions(64, 128), dim=1)
    similarity = table @ table.T
    assert similarity[10, 11] > similarity[10, 14] > similarity[10, 40]
    assert similarity[10, 13].item() == pytest.approx(similarity[50, 53].item(), abs=1e-5)
