"""One declaration of an option: from it come the recipe key, the command-line option and the Python argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from onnxcompress.recipe.kinds import Kind

COMPRESSION, DATA, TRAINING, LATENCY, GATES, OUTPUT = (
    "compression",
    "data",
    "training",
    "latency",
    "gates",
    "output",
)

GROUPS: Mapping[str, str] = {
    COMPRESSION: "what is done to the model",
    DATA: "data (a folder of images, an .npz file, a folder of test_data_set_*, or module:callable)",
    TRAINING: "training (needs PyTorch: pip install onnxcompress[train])",
    LATENCY: "latency measurement",
    GATES: "gates: exit code 3 and OUT untouched when one fails",
    OUTPUT: "what is written",
}


@dataclass(frozen=True)
class Option:
    """How an option is called, checked and explained.

    Attributes:
        kind: the values it takes.
        group: a key of `GROUPS`.
        metavar: the value's place-holder in the help.
        help: one line; the default is added to it unless it stands there already.
    """

    kind: Kind
    group: str
    metavar: str
    help: str


def option(default: Any, kind: Kind, group: str, metavar: str, help: str) -> Any:
    """Return a dataclass field that carries its `Option`; a mutable default is made anew for each recipe."""
    metadata = {"option": Option(kind, group, metavar, help)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(recipe_class: Any) -> dict[str, Option]:
    """Return the options of a dataclass whose fields were made by `option`, in their order."""
    return {f.name: f.metadata["option"] for f in fields(recipe_class)}
