"""Was it worth it: a run's encoder judged against others; its data are prepared on the cluster."""

from __future__ import annotations

from collections.abc import Sequence

from simclr_ray.config import BadInput, EvaluateConfig
from simclr_ray.evaluate.compare import Candidate, baselines_of, by_knn, by_linear
from simclr_ray.evaluate.labels import require_same_classes
from simclr_ray.evaluate.results import BASELINES, OURS, append_result, result_row
from simclr_ray.evaluate.worth import classify, results
from simclr_ray.export.encoder import Pretrained, encoder_file, load_pretrained
from simclr_ray.export.named import load_named
from simclr_ray.orchestrate.evaluate import initial_weights, judged_encoder
from simclr_ray.orchestrate.prepare import prepare_into
from simclr_ray.report.encoder_plots import write_encoder_plots


def judge_run(run: str, against: Sequence[str], train: str | None = None, test: str | None = None) -> None:
    """Scores the encoder of a run folder by kNN and linearly, beside its pixels, its start and those of `against`.

    `against`: names as `load_named` takes them; each encoder sees the images at the size that it was trained on.
    `train` and `test`: labelled data, which prepare takes; None: those of the run's check. The rows in
    evaluation.jsonl have the permutation test of each difference; the plots of the features go to report/. All cores
    of this machine, or its GPU, compute the features, for minutes where the networks or the data are large. Raises
    BadInput.
    """
    pretrained, file = load_pretrained(run), encoder_file(run)
    folder = file.parent
    others = [_other(name, pretrained) for name in dict.fromkeys(against) if name not in BASELINES]
    check = pretrained.config.evaluate
    train, test = train or check.train or pretrained.config.data.train, test or check.test
    if not test:
        raise BadInput("--against needs labelled images, and the run has no evaluate.test: give --train and --test")
    bank, queries = (prepare_into(folder.parent.uri, source) for source in (train, test))
    require_same_classes(bank, queries)
    size = pretrained.size
    scorings = {
        "knn": by_knn(size, EvaluateConfig.neighbours, EvaluateConfig.temperature),
        "linear": by_linear(size, bank.rows, crops=0, seed=0),
    }
    initial = initial_weights(folder, pretrained.config)
    own, found = [judged_encoder(pretrained), *baselines_of(pretrained.config, size, initial)], []
    for candidate, view_size in [(one, size) for one in own] + [(one, one.size) for one in others]:
        judged = classify(candidate, view_size, scorings, bank, queries)
        tops = ", ".join(f"{name} {judged.accuracies[name].top1:.2f} %" for name in scorings)
        print(f"{candidate.name}: {tops}", flush=True)
        found.append(judged)
    for name, scoring in scorings.items():
        row = result_row(name, scoring.settings, train, test, 1.0, file, pretrained.sha256)
        append_result(folder, row | found[0].counts | {"results": results(found, name)})
    write_encoder_plots(folder, found, bank, queries)


def _other(name: str, own: Pretrained) -> Candidate:
    if name == OURS:
        raise BadInput(f"--against {name}: that is what the run's own encoder is called; name another one")
    try:
        encoder, transform = load_named(name, own)
    except BadInput as error:
        raise BadInput(f"--against {name}: {error}") from None
    return Candidate(name=name, encoder=encoder, size=transform.size, mean=transform.mean, std=transform.std)
