"""The pages in a real browser: they need nothing else, are as wide as a telephone, and print. Without one: skipped."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest
from test_ablation import REACHED, recorded
from test_comparison import run_folder
from test_run_page import disturbed
from test_worth import KNN, LINEAR

from simclr_ray.report.comparison import compare_runs
from simclr_ray.report.comparison_page import write_comparison_page
from simclr_ray.report.html import STYLE
from simclr_ray.report.page import write_page
from simclr_ray.report.run import read_run
from simclr_ray.report.run_page import write_run_page
from simclr_ray.storage.location import open_location
from simclr_ray.sweep.records import read_sweep
from sweep_records import usual, written

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
HARNESS = """<!doctype html><meta charset="utf-8"><title></title>
<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const {{contentDocument: page, contentWindow: view}} = document.querySelector("iframe");
  const {{clientWidth, scrollWidth}} = page.documentElement;
  const wide = [...page.body.children].filter((one) => one.getBoundingClientRect().right > clientWidth + 1);
  const broken = [...page.images].filter((one) => !one.complete || !one.naturalWidth);
  const requests = view.performance.getEntriesByType("resource").length;
  const found = [view.innerWidth, scrollWidth - clientWidth, wide.length, page.images.length, broken.length, requests];
  document.title = found.join(" ");
}});
</script>
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Those of a run with all its sections but views, of a comparison, a sweep and an ablation."""
    folder = tmp_path_factory.mktemp("pages")
    run = disturbed(folder / "run")
    (run / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (KNN, LINEAR)))
    runs = [run_folder(folder / name, 40.0, method__name=name) for name in ("simclr", "byol")]
    compared = write_comparison_page(compare_runs(runs), open_location(runs[0]))
    sweep = read_sweep(written(folder / "sweep", usual()))
    sweeps = [write_page(records) for records in (sweep, recorded(folder / "ablation", REACHED))]
    return [Path(page.uri) for page in (write_run_page(read_run(str(run), now=1000.0)), compared, *sweeps)]


def test_a_page_asks_for_nothing_and_fits_every_width(pages: list[Path]) -> None:
    for page in pages:
        content = page.read_text()
        assert "default-src 'none'" in content  # a browser itself refuses what a page would fetch or run
        assert not re.search(r"<(script|link|iframe|object|form)\b|\bon\w+=|@import|url\(", content)
        assert "http" not in re.sub(r'base64,[^"]*|http-equiv', "", content)
        assert '<meta name="viewport" content="width=device-width' in content
    for rule in ("@media print", "@media (max-width", "overflow-x: auto"):
        assert rule in STYLE


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it(pages: list[Path], width: int, tmp_path: Path) -> None:
    """No request, no broken image; nothing is wider than the window, in which tables and plots scroll."""
    for page in pages:
        harness = tmp_path / f"{page.stem}.html"
        harness.write_text(HARNESS.format(width=width, page=escape(page.read_text())))
        shown = browser("--dump-dom", harness, tmp_path)
        found = re.search(r"<title>(.*)</title>", shown)
        assert found
        images = page.read_text().count("<img")
        assert found[1].split() == [str(width), "0", "0", str(images), "0", "0"]


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_a_browser_prints_it(pages: list[Path], tmp_path: Path) -> None:
    for page in pages:
        browser(f"--print-to-pdf={tmp_path / 'page.pdf'}", page, tmp_path)
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def browser(action: str, page: Path, folder: Path) -> str:
    assert BROWSER
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", action]
    return subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, text=True, timeout=60).stdout
