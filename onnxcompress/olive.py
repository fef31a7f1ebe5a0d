"""A pass for Microsoft Olive: compression as a step of an Olive workflow.

Olive finds passes in its package configuration. `python -m onnxcompress.olive F.json` writes Olive's own with this pass
added; `olive run --config workflow.json --package-config F.json` then knows passes of type `OnnxCompress`.

The pass takes every option of a recipe that makes sense inside a workflow, by the name it has in Python, and no other:
what is written, and where, is Olive's business.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

from olive.data.config import DataConfig
from olive.exception import OlivePassError
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from onnxcompress.errors import BudgetInfeasibleError, OnnxCompressError
from onnxcompress.pipeline.compress import CompressionResult, compress
from onnxcompress.recipe import Recipe
from onnxcompress.recipe.kinds import Flag, InputShapes, Kind, ManyOf, Number, ProviderOptions, Targets, Whole
from onnxcompress.recipe.options import options_of
from onnxcompress.report.gate_text import gate_sentence
from onnxcompress.report.json_file import plain_json

_NOT_IN_A_WORKFLOW = frozenset({"dry_run", "keep_failed", "overwrite", "resume"})
_DATA = {"data": "data_config", "calib": "calib_data_config", "train": "train_data_config"}


class OnnxCompress(Pass):  # type: ignore[misc]
    """Prunes filters and splits layers of an ONNX model; see docs/olive.md.

    A gate that does not hold, or a target out of reach, ends the workflow with an error. With `stop_at_failed_gate` off
    it fails the pass as Olive has it: a search goes on without this candidate, and without a search there is no model.
    What is wrong with options or data always ends it.
    """

    _accepts_composite_model: ClassVar[bool] = False

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """Blocks of widths and ranks, and latency, are the execution provider's."""
        return False

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        params = {
            "recipe": PassConfigParam(
                type_=str | dict[str, Any], description="A recipe file, or its keys; the options below win over it."
            ),
            "stop_at_failed_gate": PassConfigParam(
                type_=bool, default_value=True, description="End the workflow where a gate does not hold."
            ),
        }
        for name, option in options_of(Recipe).items():
            if name not in _NOT_IN_A_WORKFLOW:
                params[name] = PassConfigParam(type_=_type_of(option.kind), description=option.help)
        for name, param in _DATA.items():
            about = f"Olive's own description of data, in place of `{name}`."
            params[param] = PassConfigParam(type_=DataConfig | dict[str, Any], description=about)
        return params

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        if not isinstance(model, ONNXModelHandler):
            raise ValueError(f"OnnxCompress takes ONNX models, not a {type(model).__name__}")
        target = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        target.parent.mkdir(parents=True, exist_ok=True)
        given = {name: value for name, value in config.model_dump().items() if value is not None}
        stop = given.pop("stop_at_failed_gate", True)
        recipe = given.pop("recipe", None)
        data = {name: _reader(given.pop(param), model) for name, param in _DATA.items() if param in given}
        try:
            settled = self._with_provider(_recipe_of(recipe).updated(given))
            # Olive's cache may hold what a run that was stopped has left.
            result = compress(model.model_path, settled, output=target, overwrite=True, **data)
        except BudgetInfeasibleError as error:
            raise _failed(str(error), stop=stop) from error
        except OnnxCompressError as error:
            raise ValueError(str(error)) from error
        if not result.passed:
            broken = "; ".join(gate_sentence(gate) for gate in result.report.gates if not gate.passed)
            raise _failed(f"gate failed: {broken}", stop=stop)
        return _handler(target, model, result)

    def _with_provider(self, recipe: Recipe) -> Recipe:
        """Blocks and latency are those of the provider that Olive works for, where the recipe names none.

        Latency is measured only where something here depends on it: Olive's evaluators measure the outcome.
        """
        import onnxruntime

        own, default = self.accelerator_spec.execution_provider, Recipe()
        if recipe.provider == default.provider and own in onnxruntime.get_available_providers():
            recipe = recipe.updated({"provider": [str(own)]})
        if recipe.round_to is None:
            recipe = recipe.updated({"round_to": "auto"})
        shown = (recipe.report, recipe.html, recipe.markdown, recipe.junit)
        if recipe.min_speedup is None and not any(shown):
            recipe = recipe.updated({"latency": False})
        return recipe


def package_config() -> dict[str, Any]:
    """Return Olive's package configuration with this pass among its passes."""
    config: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text("utf-8"))
    config["passes"]["OnnxCompress"] = {
        "module_path": "onnxcompress.olive.OnnxCompress",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "dataset": "dataset_optional",
        "module_dependencies": ["onnxcompress"],
    }
    return config


def _recipe_of(given: str | dict[str, Any] | None) -> Recipe:
    if given is None:
        return Recipe()
    return Recipe.from_toml(given) if isinstance(given, str) else Recipe.from_mapping(given, "recipe")


def _type_of(kind: Kind) -> Any:
    """Return the Python type of an option's values in JSON; the recipe itself checks what they may be."""
    if isinstance(kind, Flag):
        return bool
    if isinstance(kind, Number):
        return float
    if isinstance(kind, Whole):
        return int | str if kind.words else int
    if isinstance(kind, ManyOf):
        return list[str]
    if isinstance(kind, (InputShapes, Targets, ProviderOptions)):
        return dict[str, Any]
    return str


def _reader(given: Any, model: ONNXModelHandler) -> Any:
    """Return onnxruntime's CalibrationDataReader of Olive's description of data."""
    config = given if isinstance(given, DataConfig) else DataConfig(**given)
    container = config.to_data_container()
    return container.create_calibration_dataloader(model_path=model.model_path, io_config=model.io_config)


def _failed(message: str, *, stop: bool) -> Exception:
    return ValueError(message) if stop else OlivePassError(message)


def _handler(path: Path, model: ONNXModelHandler, result: CompressionResult) -> ONNXModelHandler:
    """Return the written model as Olive knows it, with the figures of the report among its attributes."""
    gained = plain_json(result.report.compression)
    attributes = {**(model.model_attributes or {}), "onnxcompress": {"compression": gained}}
    has_side_file = any(path.parent.glob(f"{path.name}.*.data"))
    return ONNXModelHandler(
        model_path=str(path.parent if has_side_file else path),
        onnx_file_name=path.name if has_side_file else None,
        model_attributes=attributes,
    )


def main() -> int:
    """Write the package configuration to the file that is named, or to standard output."""
    text = json.dumps(package_config(), indent=4) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
