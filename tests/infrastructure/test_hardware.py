"""What the machine tells of itself."""

from pathlib import Path

from smallgpt.infrastructure.hardware import last_level_cache


def test_the_last_cache_is_the_largest_that_is_listed(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "32K", "1024K", "32768K")):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "size").write_text(f"{size}\n")
    assert last_level_cache(tmp_path) == 32 * 2**20


def test_a_machine_may_tell_none(tmp_path: Path) -> None:
    assert last_level_cache(tmp_path) is None
    (tmp_path / "index0").mkdir()
    assert last_level_cache(tmp_path) is None
