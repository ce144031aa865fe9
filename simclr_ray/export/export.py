"""Exports the encoder of a run into a new folder: in one format, with its preprocessing and a model card."""

from __future__ import annotations

from simclr_ray.config import BadInput
from simclr_ray.export.card import write_card
from simclr_ray.export.encoder import encoder_file, load_pretrained
from simclr_ray.export.formats import Format, write_format
from simclr_ray.storage.location import open_location


def export(run: str, out: str, form: Format, command: str) -> str:
    """Writes to the new folder `out`; returns Python lines that load what is there. `command`: for the card.

    Raises BadInput for a run without an encoder, a folder that is not empty or cannot be written, a network that the
    format cannot hold, and a package that is missing.
    """
    file, location = encoder_file(run), open_location(out)
    pretrained = load_pretrained(file)
    try:
        other = next((entry.name for entry in location.files()), None)
        if other:
            raise BadInput(f"{out} is not empty (it holds {other}): choose a new folder")
        lines = write_format(form, pretrained, file.read_bytes(), location)
        write_card(form, pretrained, file, location, lines, command)
    except OSError as error:
        raise BadInput(f"cannot write to {out}: {str(error).splitlines()[0]}; choose another folder") from None
    return lines
