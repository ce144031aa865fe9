"""The space of a sweep: for each science key a range or a few choices, checked before any trial starts."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Any

from simclr_ray.config import Config, config_types, current_key, is_science
from simclr_ray.config.checks import BadInput, require

DEFAULT = ("method.temperature=0.05:1:log", "optim.lr_per_256=0.05:2:log", "augment.strength=0.1:1.5")
"""What SimCLR is sensitive to (Chen et al. 2020, sections 3 to 5); other methods sweep those that they have."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """From low to high, both included; whole numbers if both are."""

    low: float
    high: float
    log: bool = False

    def samples(self) -> tuple[Any, ...]:
        """Both ends, and a value between that is no round one."""
        inside = self.low + 0.382 * (self.high - self.low)
        return self.low, round(inside) if isinstance(self.low, int) else inside, self.high

    def to_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One of these."""

    choices: tuple[Any, ...]

    def samples(self) -> tuple[Any, ...]:
        return self.choices

    def to_json(self) -> dict[str, Any]:
        return {"choices": list(self.choices)}


Space = dict[str, Range | Choices]
"""By dotted key."""


def parse_space(entries: typing.Sequence[str], config: Config) -> Space:
    """From KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B,C; without any the config's part of DEFAULT. Raises BadInput.

    Samples of a range, and every choice, must be values that `config` takes.
    """
    space: Space = {}
    for entry in entries or _default(config):
        key, mark, text = entry.partition("=")
        key = current_key(key.strip().removeprefix("--").replace("-", "_"))
        require(bool(mark and text), f"--space {entry!r}: write KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B,C")
        require(key not in space, f"--space names {key} twice")
        space[key] = _domain(key, text)
        for value in space[key].samples():
            config.with_overrides({key: value})
    return space


def _default(config: Config) -> list[str]:
    has = config.flat()
    return [entry for entry in DEFAULT if entry.partition("=")[0] in has]


def _domain(key: str, text: str) -> Range | Choices:
    hint = config_types().get(key)
    require(hint is not None, f"--space: no such setting: {key}; the settings are listed by --help")
    require(
        is_science(key) and not key.startswith("evaluate."),
        f"--space: {key} does not change what is learnt; search over data, augment, model, method, optim or train",
    )
    if ":" not in text or hint is str:  # model.arch=resnet18,torchvision:vit_b_16
        return Choices(choices=tuple(_value(key, hint, word) for word in text.split(",")))
    low, high, *rest = text.split(":")
    require(rest in ([], ["log"]), f"--space {key}={text}: after LOW:HIGH only :log may follow")
    ends = _value(key, hint, low), _value(key, hint, high)
    require(
        all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends),
        f"--space {key}={text}: a range needs numbers; write choices as A,B,C",
    )
    require(ends[0] < ends[1], f"--space {key}={text} is empty: LOW must be below HIGH")
    require(not rest or ends[0] > 0, f"--space {key}={text}: a log range begins above 0")
    return Range(low=ends[0], high=ends[1], log=bool(rest))


def _value(key: str, hint: Any, word: str) -> Any:
    """`word` as the first of the key's types that it can be read as."""
    options = typing.get_args(hint) if not _is_literal(hint) and typing.get_args(hint) else (hint,)
    for option in options:
        if _is_literal(option):
            found = next((value for value in typing.get_args(option) if str(value) == word), None)
            if found is not None:
                return found
        elif option is bool and word.lower() in ("true", "false"):
            return word.lower() == "true"
        elif option in (int, float):
            try:
                number = option(word)
            except ValueError:
                continue
            if math.isfinite(number):
                return number
        elif option is str:
            return word
        elif option is type(None) and word == "None":
            return None
    raise BadInput(f"--space {key}: {word!r} is no value of it")


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal
