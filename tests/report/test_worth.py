"""The worth-it table: differences to the run, what is significant, and in words whether the run loses."""

from __future__ import annotations

from typing import Any

from simclr_ray.report.worth import NOTE, worth_of
from simclr_ray.storage.run_folder import Row


def evaluated(method: str, test: str = "test", fraction: float = 1.0, **found: Any) -> Row:
    results = {name: dict(zip(("top1", "p"), value, strict=False)) for name, value in found.items()}
    row: Row = {"method": method, "train": "train", "test": test, "test_rows": 1000, "fraction": fraction}
    return row | {"results": results}


KNN = evaluated("knn", pretrained=(50.0,), untrained=(30.0, 1e-9), net=(70.5, 0.01), pixels=(49.0, 0.25))
LINEAR = evaluated("linear", pretrained=(60.0,), untrained=(35.0, 0.0), net=(60.0, 1.0), pixels=(40.0, 0.002))


def test_it_says_what_the_run_beats_and_loses_to() -> None:
    worth = worth_of([KNN, LINEAR])
    assert worth
    assert worth.head == ["", "kNN", "linear"]
    assert worth.rows == [
        ("", ["untrained", "30.0 (-20.0, p < 0.001)", "35.0 (-25.0, p < 0.001)"]),
        ("", ["pixels", "49.0 (-1.0, p = 0.250)", "40.0 (-20.0, p = 0.002)"]),
        ("", ["net", "70.5 (+20.5, p = 0.010)", "60.0 (+0.0, p = 1.000)"]),
        ("best", ["this run", "50.0", "60.0"]),
    ]
    assert worth.verdicts == [
        "kNN: this run LOSES to net by 20.5 points (p = 0.010); no significant difference to pixels "
        "(-1.0 points, p = 0.250); this run beats untrained by 20.0 points (p < 0.001).",
        "linear: no significant difference to net (+0.0 points, p = 1.000); this run beats untrained by 25.0 "
        "points (p < 0.001), pixels by 20.0 points (p = 0.002).",
    ]
    table, note = worth.text().split("\n\n")
    assert table.splitlines()[-3].split() == ["this", "run", "50.0", "60.0"]
    assert " ".join(note.split()) == NOTE, "how the others' learning rate was chosen is not for the page alone"


def test_the_newest_judgement_counts_beside_fine_tuning_on_the_same_data() -> None:
    finetuned = {"pretrained": (72.0,), "untrained": (30.0,)}
    rows = [
        evaluated("finetune", fraction=0.1, **finetuned),
        evaluated("finetune", fraction=0.01, test="other", **finetuned),
        evaluated("knn", pretrained=(10.0,), pixels=(9.0, 0.5)),
        KNN,
        LINEAR,
        evaluated("knn", pretrained=(90.0,), pixels=(80.0,)),  # by evaluate.py: not tested
    ]
    worth = worth_of(rows)
    assert worth
    assert worth.head == ["", "kNN", "linear", "fine-tuned on 10 %"]
    assert [cells[1] for _, cells in worth.rows][-1] == "50.0"
    assert [cells[3] for _, cells in worth.rows] == ["30.0 (-42.0)", "-", "-", "72.0"]
    assert len(worth.verdicts) == 2


def test_without_a_judgement_there_is_none() -> None:
    assert worth_of([]) is None
    assert worth_of([evaluated("knn", pretrained=(90.0,), pixels=(80.0,))]) is None
