"""The one table of operators. Adding an operator is one small function with this decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis

Handler = Callable[["ChannelAnalysis", gs.Node], None]

HANDLERS: dict[str, Handler] = {}


def operator(*names: str) -> Callable[[Handler], Handler]:
    """Register a function for operators of the default domain."""

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register
