"""A plan beside the records of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plans import FIGURES, FLEET, JOB
from records import begun, event
from simclr_ray.config import BadInput, Config
from simclr_ray.planning.estimate import plan
from simclr_ray.report.plan import against, comparison
from small_runs import TINY


def recorded(folder: Path, config: Config) -> Path:
    """48 steps of half a second after five seconds of start; its first row has waited for the first batch."""
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    rows: list[dict[str, Any]] = [
        {"step": step, "time": 104.5 + step / 2, "images_per_s": 100.0 if step == 4 else 512.0}
        for step in range(4, 49, 4)
    ]
    events = [*begun(100, 0, workers=1), event("done", 128.5, 48)]
    (folder / "events.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in events))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    return folder


def test_a_plan_is_set_beside_what_a_run_did(tmp_path: Path) -> None:
    precise = TINY.with_overrides({"train.precision": "float32"})
    run = recorded(tmp_path / "r", precise)
    job = replace(JOB, global_batch=256, busiest_rows=256, steps=48)
    found = plan(job, replace(FLEET, workers=1, nodes=1), FIGURES.given(step_images_per_s=512, ready_s=5))
    rows = against(found, TINY.with_overrides({"train.precision": "auto"}), str(run), now=1000.0)
    assert {row.name: (row.planned, row.actual) for row in rows} == {
        "images/s": (512, 512),
        "seconds of set-up, first step": (5, 5),
        "seconds of training": (24, 23.5),
        "seconds of evaluation": (0, 0),
        "seconds in all": (pytest.approx(29), 28.5),
        "goodput": (pytest.approx(24 / 29), pytest.approx(23.5 / 28.5)),
    }
    assert comparison(rows).splitlines()[1].split() == ["images/s", "512", "512", "1.00"]
    labelled = precise.with_overrides({"method.name": "supervised", "method.classes": 10, "evaluate.method": "rankme"})
    (run / "config.json").write_text(labelled.to_json())
    asked = precise.with_overrides({"method.name": "supervised"})
    assert against(found, asked, str(run), now=1000.0) == rows, "what the run's start has resolved and fitted"
    with pytest.raises(BadInput, match="other settings \\(evaluate.method\\)"):
        against(found, asked, str(run), now=1000.0, requested={"evaluate.method"})
    (run / "config.json").write_text(precise.to_json())
    with pytest.raises(BadInput, match="other settings \\(method.temperature\\)"):
        against(found, precise.with_overrides({"method.temperature": 0.2}), str(run), now=1000.0)
    (run / "events.jsonl").write_text(json.dumps(begun(100, 0)[0]) + "\n")
    with pytest.raises(BadInput, match="is interrupted: compare with a run that has ended"):
        against(found, precise, str(run), now=1000.0)
