"""The commands with nothing but an object store: data, runs, pages and features lie there, and a run resumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from commands import FAST, ROOT, SMALL, TIMEOUT_S, flags
from faulty_store import BUCKET, moto_with_bucket
from forked import run_forked
from google_store import google_store
from moto_server import CREDENTIALS

Address = Callable[[str], str]


@contextmanager
def s3() -> Iterator[tuple[Address, dict[str, str]]]:
    with moto_with_bucket() as url:
        yield lambda path: f"s3://{BUCKET}/{path}", CREDENTIALS | {"AWS_ENDPOINT_URL": url}


@contextmanager
def gs() -> Iterator[tuple[Address, dict[str, str]]]:
    with google_store() as store:
        yield store.uri, {}


@pytest.mark.slow
@pytest.mark.parametrize("store", [s3, gs])
def test_every_step_from_pictures_to_features_in_a_store(store: Callable, tmp_path: Path) -> None:
    with store() as (at, variables):

        def type_(*words: str) -> str:
            line = [str(ROOT / "experiments" / words[0]), *words[1:]]
            done = run_forked(line, cwd=tmp_path, env=os.environ | FAST | variables, timeout=TIMEOUT_S)
            assert done.returncode == 0, done.stderr
            return done.stdout

        train, test, run = at("train"), at("test"), at("runs/r")
        type_("prepare.py", "synthetic:1024", train)
        type_("prepare.py", "synthetic:256:test", test)
        where = {"data.train": train, "evaluate.test": test, "storage": at("runs"), "name": "r"}
        pretrain = ["pretrain.py", "quickstart", *flags(SMALL | where)]
        assert "stopped at step 12" in type_(*pretrain, "--saving.stop-after-epochs", "1.5")
        assert "done at step 24" in type_(*pretrain)
        assert "pretrained" in type_("evaluate.py", run, "knn", "--train", train, "--test", test)
        assert "24 of 24" in type_("status.py", "--storage", at("runs"))
        assert "report/index.html" in type_("report.py", run)
        assert "1,024 images, features of 32 numbers" in type_("embed.py", run, train, at("features"))
        assert "sheet: neighbours.png" in type_("neighbours.py", at("features"), "--query", "0")
