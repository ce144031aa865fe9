"""A run's page holds all that it shows; the sheet of views shows the pixels that the run trains on."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from test_report import full_row, written
from test_worth import KNN

from records import begun, event, save
from simclr_ray.config import AugmentConfig, BadInput
from simclr_ray.data.augment.views import Jitter, ViewParams, draw_local_views, draw_views, render
from simclr_ray.data.decode import decode
from simclr_ray.report.run import read_run
from simclr_ray.report.run_page import write_run_page
from simclr_ray.report.sheet import contact_sheet
from simclr_ray.report.views import LINES, described, images_in, images_of, views_sheet
from simclr_ray.storage.run_folder import Row
from small_runs import TINY, corrupted, synthetic_dataset

EVALUATION: Row = {
    "method": "knn",
    "settings": {"k": 200},
    "train": "<train>",
    "test": "test & more",
    "results": {"pixels": {"top1": 41.0, "top5": 80.0}, "pretrained": {"top1": 58.125, "top5": 91.0}},
}


def disturbed(folder: Path) -> Path:
    """A run of two workers that had a notice, lost one, was begun again with one, and is done."""
    events = [
        *begun(100, 0),
        event("notice", 120, 11, deadline_s=30.0, nodes=["n"]),
        event("regroup", 125, 12, workers={"from": 2, "to": 1}, lost=1, joined=0, pause_s=0.5),
        save(140, 20),
        *begun(160, 20, workers=1),
        event("done", 190, 30),
    ]
    rows = [full_row(time, step) for time, step in ((115, 8), (135, 16), (170, 24), (188, 30))]
    rows = [row | {"lr": 0.1, "data_wait_fraction": 0.01} for row in rows]
    return written(folder, events, [*rows[:-1], rows[-1] | {"knn_top1": 42.0}])


class Images(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.titles: list[str | None] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            values = dict(attrs)
            assert (values["src"] or "").startswith("data:image/png;base64,")
            self.titles.append(values["alt"])


def test_the_page_of_a_run_holds_all_that_it_shows(tmp_path: Path) -> None:
    run = disturbed(tmp_path / "r&d")
    dataset = synthetic_dataset(tmp_path / "data", 16)
    (run / "config.json").write_text(TINY.with_overrides({"data.train": dataset.uri}).to_json())

    (run / "evaluation.jsonl").write_text(json.dumps(EVALUATION) + "\n")
    page = write_run_page(read_run(str(run), now=1000.0))
    assert page.uri == f"{run}/report/index.html"
    content = (run / "report" / "index.html").read_text()
    found = Images(content)
    assert found.titles == ["The run over time", "Where the time went", "Images and the views of the first epoch"]
    for words in ("Run r&amp;d", "finished", "&lt;train&gt;", "test &amp; more", "58.12", "survived  1 workers lost"):
        assert words in content, words
    assert {file.name for file in (run / "report").iterdir()} == {"index.html", "time.png", "goodput.png", "views.png"}


def test_what_a_judgement_left_is_shown(tmp_path: Path) -> None:
    run = disturbed(tmp_path / "run")
    (run / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (EVALUATION, KNN)))
    (run / "report").mkdir()
    for name in ("features.png", "nearest.png"):
        (run / "report" / name).write_bytes(contact_sheet([np.zeros((8, 8, 3), np.uint8)], [name]))
    content = Path(write_run_page(read_run(str(run), now=1000.0)).uri).read_text()
    assert Images(content).titles[-2:] == ["The features of the test images", "Nearest neighbours"]
    assert "this run LOSES to net by 20.5 points" in content
    assert content.count("<tr") == 1 + len(KNN["results"]) + 1 + len(EVALUATION["results"])  # heads, and each row once


def test_a_run_without_rows_config_or_data_has_a_page_that_says_so(tmp_path: Path) -> None:
    run = written(tmp_path / "begun", begun(100, 0), [])
    write_run_page(read_run(str(run), now=110.0))
    content = (run / "report" / "index.html").read_text()
    assert "Nothing has been logged yet." in content
    (run / "config.json").write_text(TINY.with_overrides({"data.train": str(tmp_path / "gone")}).to_json())
    write_run_page(read_run(str(run), now=110.0))
    assert "The data cannot be read from here" in (run / "report" / "index.html").read_text()


def test_the_sheet_shows_the_views_of_the_first_epoch(tmp_path: Path) -> None:
    """160 pixels a side, so views of 16 and 32 are magnified by whole factors; undecodable images are left out."""
    dataset = corrupted(synthetic_dataset(tmp_path / "whole", 16), tmp_path / "cut", {1})
    config = AugmentConfig(size=16, local_views=1, local_size=8)
    images = list(images_of(dataset, 3))
    assert [number for number, _ in images] == [0, 2, 3]
    sheet = decode(views_sheet(images, 7, config))
    for row, (number, image) in enumerate(images):
        key = (7, 0, number, 32, 32, config)
        views = [render(image, params, 16) for params in draw_views(*key)]
        views += [render(image, params, 8) for params in draw_local_views(*key)]
        for column, expected in enumerate([image, *views]):
            scale = 160 // len(expected)
            left, top = 8 + column * 168, 8 + row * (160 + 4 + 14 * LINES + 8)
            shown = sheet[top : top + 160, left : left + 160]
            np.testing.assert_array_equal(shown[scale // 2 :: scale, scale // 2 :: scale], expected)


def test_a_source_need_not_be_prepared(tmp_path: Path) -> None:
    assert [number for number, _ in images_in("synthetic:64", 3)] == [0, 1, 2]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    with pytest.raises(BadInput, match="holds no image that can be decoded"):
        images_in(str(tmp_path), 3)


def test_the_parameters_of_a_view_are_told() -> None:
    params = ViewParams(1, 2, 30, 40, True, Jitter(1.2, 0.8, 1.0, -0.05, (0, 1, 2, 3)), True, 0.7, True)
    lines = ["40 x 30 at 2, 1 flipped", "bright 1.20, contrast 0.80", "satur. 1.00, hue -0.050"]
    assert described(params).splitlines() == [*lines, "gray, blur 0.70, solarized"]
    assert described(ViewParams(0, 0, 8, 8, False, None, False, 0.0)) == "8 x 8 at 0, 0"
