"""All networks of the zoo by name."""

from __future__ import annotations

from tests.zoo.classic import CLASSIC
from tests.zoo.concatenated import CONCATENATED
from tests.zoo.convnext import CONVNEXT
from tests.zoo.dense_prediction import DENSE_PREDICTION
from tests.zoo.detection import DETECTION
from tests.zoo.entry import ZooEntry
from tests.zoo.mobile import MOBILE
from tests.zoo.residual import RESIDUAL
from tests.zoo.shuffled import SHUFFLED
from tests.zoo.signals import SIGNALS

ZOO: dict[str, ZooEntry] = {
    **CLASSIC,
    **RESIDUAL,
    **MOBILE,
    **SHUFFLED,
    **CONCATENATED,
    **CONVNEXT,
    **DENSE_PREDICTION,
    **DETECTION,
    **SIGNALS,
}
