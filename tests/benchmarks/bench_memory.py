"""Peak memory of compressing a model above 2 GB with external data, against 1.5 times its weights plus 500 MB.

Run: python tests/benchmarks/bench_memory.py [GIGABYTES] [NAME ...]
     with names out of OPTIONS, all of them without any
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 2048
KERNEL = 3
BYTES_OF_A_LAYER = WIDTH * WIDTH * KERNEL * KERNEL * 4
COMMON = ("--input-shape", "x:1x8x6x6", "--no-latency", "--no-progress", "--overwrite")
OPTIONS = {
    "both": ("--prune", "0.5", "--tucker", "energy=0.95"),
    "prune": ("--prune", "0.5"),
    "narrow": ("--prune", "0.05"),
    "tucker": ("--tucker", "ratio=0.5"),
    "evbmf": ("--tucker", "auto"),
    "wide": ("--tucker", "ratio=0.9"),
}


def write_model(path: Path, gigabytes: float) -> int:
    """Write a chain of wide 3x3 convolutions with their weights in a side file; return the weights' bytes."""
    layers = round(gigabytes * 1e9 / BYTES_OF_A_LAYER)
    side_file, generator = path.with_suffix(".data"), np.random.default_rng(0)
    shapes = [(WIDTH, 8, 1, 1), *[(WIDTH, WIDTH, KERNEL, KERNEL)] * layers, (10, WIDTH, 1, 1)]
    nodes, weights, last, offset = [], [], "x", 0
    with side_file.open("wb") as stream:
        for number, shape in enumerate(shapes):
            values = generator.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
            stream.write(values.data)
            tensor = onnx.TensorProto(name=f"w{number}", dims=shape, data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", side_file.name), ("offset", offset), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            offset += values.nbytes
            weights.append(tensor)
            nodes.append(helper.make_node("Conv", [last, tensor.name], [f"c{number}"], pads=[shape[2] // 2] * 4))
            nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
            last = f"r{number}"
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, "h", "w"])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, 10, "h", "w"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return offset


def main() -> None:
    """Print seconds and peak memory of a run of the program with each set of options."""
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 2.5
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "large.onnx", Path(folder) / "out.onnx"
        weights = write_model(source, gigabytes)
        bound = 1.5 * weights + 500e6
        print(f"{weights / 1e9:.2f} GB of weights, bound {bound / 1e9:.2f} GB")
        for name in sys.argv[2:] or OPTIONS:
            start = time.perf_counter()
            options = (*OPTIONS[name], *COMMON)
            with subprocess.Popen([sys.executable, "-m", "onnxcompress", source, output, "-q", *options]) as run:
                _, status, used = os.wait4(run.pid, 0)
                run.returncode = os.waitstatus_to_exitcode(status)
            print(
                f"{name}: code {run.returncode}, {time.perf_counter() - start:.0f} s, processor "
                f"{used.ru_utime + used.ru_stime:.0f} s, peak {used.ru_maxrss * 1024 / 1e9:.2f} GB"
            )


if __name__ == "__main__":
    main()
