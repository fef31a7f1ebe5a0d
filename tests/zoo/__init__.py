"""Small networks of the families users bring, and their exports: the test bed of everything that reads a graph.

`ZOO[name].network()` is the torch network; `export(name, exporter)` its ONNX model, made once and kept on disk.
"""

from tests.zoo.entry import EXPORTERS, ZooEntry
from tests.zoo.exported import expected_outputs, export, sample_inputs
from tests.zoo.registry import ZOO

__all__ = ["EXPORTERS", "ZOO", "ZooEntry", "expected_outputs", "export", "sample_inputs"]
