"""What is kept is what was used last."""

from __future__ import annotations

import random

from simclr_ray.data.recent import Recent


def test_the_values_used_last_are_kept_up_to_the_limit() -> None:
    """Against a list that is searched from its end."""
    draw, made, dropped = random.Random(0), list[int](), list[int]()
    recent = Recent[int](10, weight=lambda value: value % 4, drop=dropped.append)
    used: list[int] = []
    for _ in range(500):
        key = draw.randrange(20)
        before = [*made]
        assert recent.get(key, lambda key=key: made.append(key) or key) == key
        assert (made != before) == (key not in used)
        used = [*(other for other in used if other != key), key]
        while sum(other % 4 for other in used) > 10:
            assert dropped.pop(0) == used.pop(0)
        assert dropped == []


def test_one_that_is_too_heavy_is_kept_alone() -> None:
    recent = Recent[int](10, weight=lambda value: value)
    assert [recent.get(value, lambda value=value: value) for value in (3, 4, 50)] == [3, 4, 50]
    assert recent.get(50, lambda: 0) == 50
    assert recent.get(3, lambda: 0) == 0
