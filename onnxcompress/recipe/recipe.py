"""Everything that can be asked for, in one frozen value, wherever it was written: TOML, command line or Python."""

# ruff: noqa: RUF009  (`option` returns a dataclass field, as `field` does)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from onnxcompress.errors import RecipeError
from onnxcompress.recipe.kinds import (
    Choice,
    FilePath,
    Flag,
    InputShapes,
    Kind,
    ManyOf,
    Number,
    Provider,
    ProviderOptions,
    Regex,
    SplitSpec,
    Steps,
    Targets,
    Text,
    Whole,
)
from onnxcompress.recipe.options import COMPRESSION, DATA, GATES, LATENCY, OUTPUT, TRAINING, option, options_of
from onnxcompress.recipe.toml import emit_toml, parse_toml
from onnxcompress.remote import Location, RemoteFile, fetch_file, file_location

_FRACTION = Number("a fraction R with 0 <= R < 1, such as 0.4, or auto", minimum=0.0, below=1.0, words=("auto",))
_RATIO = Number("a number above 0, such as 1.5", above=0.0)
_POINTS = Number("percentage points from 0 to 100, such as 1.0", minimum=0.0, maximum=100.0)
_PERCENT = Number("percent from 0 to 100, such as 5.0", minimum=0.0, maximum=100.0)

CLEANUP = Steps(
    *("identity", "fold", "reshape", "transpose", "split", "pad", "batchnorm", "scale"),
    *("merge", "conv2d", "activation", "lrn", "blocked", "unused", "softmax", "share"),
)
"""The steps of the clean-up, in the order in which they run."""


RANKED_BY_DATA = ("activation", "response", "taylor")
"""What ranks filters from data: `importance`."""


@dataclass(frozen=True)
class Recipe:
    """What is done to a model, how it is judged, and what is written.

    Every field is an option of the command line (`prune_scope` is `--prune-scope`), a key of a TOML recipe and a
    keyword of `onnxcompress.compress`.

    Raises:
        RecipeError: a value cannot be used; the message starts with the field's name.
    """

    prune: float | str = option(
        0.0,
        _FRACTION,
        COMPRESSION,
        "R|auto",
        "fraction of filters to remove, 0 <= R < 1; auto: chosen under --target, --max-drop or --max-error",
    )
    prune_scope: str | None = option(
        None,
        Choice("uniform", "global"),
        COMPRESSION,
        "SCOPE",
        "uniform: R of every group; global: R of all filters ranked together (default: uniform, global with --prune "
        "auto)",
    )
    steps: int = option(
        1,
        Whole(minimum=1),
        COMPRESSION,
        "N",
        "prune in N equal steps, with the recovery after each; training between steps takes a tenth of --epochs",
    )
    importance: str | None = option(
        None,
        Choice("l1", "l2", "fpgm", "activation", "taylor", "response", "random"),
        COMPRESSION,
        "NAME",
        "what ranks filters: l1, l2, fpgm, random, or from data (--train, --calib or --data) activation, response "
        "(damage after a refit), or taylor, which needs PyTorch (default: l1, response with --prune auto)",
    )
    round_to: int | str | None = option(
        None,
        Whole(minimum=1, words=("auto",)),
        COMPRESSION,
        "N|auto",
        "widths and ranks to multiples of N; auto: the provider's block, of which a part is kept whole, as it takes no "
        "less time (default: auto, 1 with --no-latency)",
    )
    tucker: str = option(
        "off",
        SplitSpec("off", "auto", "evbmf", file=True),
        COMPRESSION,
        "SPEC",
        "split Convs into three: off, auto (where it is faster, measured), evbmf, energy=F, ratio=F or ranks=FILE.json",
    )
    svd: str = option(
        "off",
        SplitSpec("off", "auto"),
        COMPRESSION,
        "SPEC",
        "split 1x1 Convs and Gemm into two: off, auto, energy=F or ratio=F",
    )
    target: Mapping[str, float] = option(
        {},
        Targets(),
        COMPRESSION,
        "KIND=F",
        "choose the ranks of all layers together so that macs, params, size or latency is at most F times the "
        "original's; "
        "needs --calib or --data (repeatable)",
    )
    recover: str | None = option(
        None,
        Choice("none", "refit", "reconstruct", "finetune", "auto"),
        COMPRESSION,
        "MODE",
        "win accuracy back: none, refit (least squares on --calib or --data, no labels needed), reconstruct (refit, "
        "then training block by block on the same data, minutes), finetune (refit, then training on --train), "
        "auto: finetune with --train, else refit where there are data "
        "(default: auto with --target or --train, else none)",
    )
    quantize: str = option(
        "off",
        Choice("off", "int8", "fp16"),
        COMPRESSION,
        "KIND",
        "last of all, store and compute in fewer bits: off, int8 (needs --calib or --data) or fp16",
    )
    exclude: tuple[str, ...] = option(
        (), ManyOf(Regex()), COMPRESSION, "REGEX", "leave nodes alone whose name matches (repeatable)"
    )
    cleanup: str = option(
        "auto",
        CLEANUP,
        COMPRESSION,
        "STEPS",
        f"exact graph clean-up before compression: auto, off, auto,-STEP or STEP,STEP of {', '.join(CLEANUP.names)}",
    )
    verify: bool = option(
        True, Flag(), COMPRESSION, "", "do not prove every rewrite against the original before writing"
    )
    seed: int = option(0, Whole(minimum=0), COMPRESSION, "N", "seed of everything random")

    data: str | None = option(
        None, Text("a path or module:callable"), DATA, "PATH", "evaluation data: accuracy is measured on it"
    )
    calib: str | None = option(
        None,
        Text("a path or module:callable"),
        DATA,
        "PATH",
        "calibration data (default: a part of --data that is then not used for evaluation)",
    )
    samples: int | None = option(None, Whole(minimum=1), DATA, "N", "use at most N samples of each (default: all)")
    preprocess: str | None = option(
        None,
        Text("a preset or a TOML file"),
        DATA,
        "PRESET|FILE",
        "how images become input: caffe, imagenet, tf, unit, raw, or a TOML file",
    )
    task: str = option(
        "auto",
        Choice("auto", "classification", "regression"),
        DATA,
        "TASK",
        "what outputs of shape N x C hold: classification, scores of classes; regression, numbers such as embeddings, "
        "landmarks or tags; auto: scores, unless there are no labels and they favour no class",
    )

    train: str | None = option(
        None, Text("a path or module:callable"), TRAINING, "PATH", "training data for --recover finetune"
    )
    epochs: int | None = option(
        None, Whole(minimum=1), TRAINING, "N", "passes over the data (default: 16 to reconstruct, 30 to fine-tune)"
    )
    lr: float | None = option(
        None,
        Number("a number above 0, such as 0.01", above=0.0),
        TRAINING,
        "F",
        "largest step, relative to each weight tensor's size (default: 0.0003 to reconstruct, 0.01 to fine-tune)",
    )
    train_batch: int | None = option(
        None,
        Whole(minimum=1),
        TRAINING,
        "N",
        "samples of one step (default: 16 to reconstruct; to fine-tune 64, of few samples 32, 16 or 8)",
    )
    loss: str = option(
        "auto",
        Choice("auto", "labels", "distill", "both"),
        TRAINING,
        "NAME",
        "fine-tune towards labels, the original's outputs (distill) or both; auto: both where there are labels",
    )
    device: str = option("auto", Text("a device of PyTorch"), TRAINING, "NAME", "auto, cpu, cuda or cuda:N")
    resume: bool = option(
        False, Flag(), TRAINING, "", "go on from OUT.training, which a killed or interrupted fine-tuning left"
    )

    latency: bool = option(True, Flag(), LATENCY, "", "do not measure latency before and after")
    provider: tuple[str, ...] = option(
        ("cpu",),
        ManyOf(Provider(), minimum=1),
        LATENCY,
        "NAME",
        "cpu, cuda, tensorrt, openvino, directml, coreml, or an onnxruntime name (repeatable)",
    )
    provider_option: Mapping[str, Mapping[str, str]] = option(
        {}, ProviderOptions(), LATENCY, "P.KEY=VALUE", "an option of a provider, as onnxruntime calls it (repeatable)"
    )
    batch: int | None = option(None, Whole(minimum=1), LATENCY, "N", "batch size (default: the model's own, or 1)")
    threads: int | None = option(None, Whole(minimum=1), LATENCY, "N", "threads (default: as many as cores)")
    warmup: int | None = option(
        None, Whole(minimum=0), LATENCY, "N", "runs before the measured ones (default: chosen by time)"
    )
    repeat: int | None = option(None, Whole(minimum=1), LATENCY, "N", "measured runs (default: chosen by time)")
    copies: bool = option(
        False, Flag(), LATENCY, "", "time the copies to and from an accelerator's memory, too (cuda, tensorrt)"
    )
    input_shape: Mapping[str, tuple[int, ...]] = option(
        {},
        InputShapes(),
        LATENCY,
        "NAME:1x3x224x224",
        "shape of an input whose sizes the model leaves open (repeatable; default: as the data have it)",
    )

    profile: bool = option(
        False, Flag(), LATENCY, "", "show where the time goes, operator by operator, and which provider ran each node"
    )
    time_table: Location | None = option(
        None,
        FilePath(),
        LATENCY,
        "F.json",
        "take layers' times from a table made by inspect --time-table, on the machine that the model is for",
    )
    force_time_table: bool = option(
        False, Flag(), LATENCY, "", "take a time table of another machine, version or setting: that is the target"
    )

    max_drop: float | None = option(
        None, _POINTS, GATES, "P", "accuracy may fall by at most P points of top-1 (agreement without labels)"
    )
    max_error: float | None = option(
        None,
        _PERCENT,
        GATES,
        "P",
        "outputs may differ from the original's by at most P percent of their size, of any network",
    )
    min_speedup: float | None = option(None, _RATIO, GATES, "F", "latency, original / compressed, at least F")
    min_compression: float | None = option(None, _RATIO, GATES, "F", "file size, original / compressed, at least F")
    strict: bool = option(
        False, Flag(), GATES, "", "a gate also fails where its 95 % confidence interval crosses the limit"
    )

    report: Location | None = option(None, FilePath(), OUTPUT, "F.json", "write the report as JSON")
    html: Location | None = option(
        None, FilePath(), OUTPUT, "F.html", "write the report as one page that opens offline"
    )
    measure_stages: bool = option(
        False, Flag(), OUTPUT, "", "measure accuracy and latency after every stage, too, where the run measures them"
    )
    markdown: Location | None = option(
        None, FilePath(), OUTPUT, "F.md", "write a summary in Markdown, for a CI job's page"
    )
    junit: Location | None = option(
        None, FilePath(), OUTPUT, "F.xml", "write gates and self-check as JUnit XML, for CI"
    )
    save_plan: Location | None = option(
        None, FilePath(), OUTPUT, "F.json", "write what was decided, to review and replay"
    )
    plan: Location | None = option(None, FilePath(), OUTPUT, "F.json", "replay a saved plan instead of deciding")
    plan_structure_only: bool = option(
        False, Flag(), OUTPUT, "", "replay the plan on other weights of the same architecture, such as retrained ones"
    )
    force_plan: bool = option(
        False, Flag(), OUTPUT, "", "replay the plan on another model, as far as its decisions fit"
    )
    dry_run: bool = option(
        False, Flag(), OUTPUT, "", "show what would be done: OUT is not written, plan and reports are where asked for"
    )
    overwrite: bool = option(False, Flag(), OUTPUT, "", "replace OUT if it exists")
    keep_failed: bool = option(False, Flag(), OUTPUT, "", "write OUT even if a gate failed (the exit code stays 3)")
    external_data: bool = option(
        False, Flag(), OUTPUT, "", "write weights to a side file of OUT (above 2 GB that is always done)"
    )

    def __post_init__(self) -> None:
        for name, known in options_of(Recipe).items():
            object.__setattr__(self, name, _checked(known.kind, getattr(self, name), _default(name), name))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "") -> Recipe:
        """Return the recipe of {key: value}; keys may be written with `-` or `_`.

        Raises:
            RecipeError: an unknown key or a value that cannot be used; the message starts with `source` and the key.
        """
        return cls().updated(values, source)

    @classmethod
    def from_toml(cls, path: str | Location) -> Recipe:
        """Read a recipe file, here or at an address such as https://host/recipe.toml.

        Raises:
            RecipeError: the file cannot be read, is no TOML, or holds a key or value that cannot be used.
        """
        file = file_location(path)
        if isinstance(file, RemoteFile):
            copy = fetch_file(file, RecipeError)
            with copy.named():
                return cls.from_mapping(parse_toml(copy.path), str(file))
        return cls.from_mapping(parse_toml(file), str(path))

    def updated(self, values: Mapping[str, Any], source: str = "") -> Recipe:
        """Return this recipe with `values` in place of its own; errors as in `from_mapping`."""
        known, prefix = options_of(Recipe), f"{source}: " if source else ""
        changed: dict[str, Any] = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name not in known:
                raise RecipeError(f"{prefix}{key}: unknown key{_suggestion(name, known)}")
            if name in changed:
                raise RecipeError(f"{prefix}{key}: given twice, with '-' and with '_'")
            changed[name] = _checked(known[name].kind, value, _default(name), f"{prefix}{key}")
        return replace(self, **changed)

    def updated_from_words(self, words: Mapping[str, Sequence[str] | bool]) -> Recipe:
        """Return this recipe with a command line's options in place of its own: {field: words after the option}."""
        known, changed = options_of(Recipe), {}
        for name, texts in words.items():
            where = f"--{name.replace('_', '-')}"
            kind = known[name].kind
            value = texts if isinstance(texts, bool) else kind.from_texts(texts, where)
            changed[name] = kind.checked(value, where)
        return replace(self, **changed)

    @property
    def prune_share(self) -> float:
        """The fraction of filters to remove; 0 where it is yet to be chosen."""
        return 0.0 if isinstance(self.prune, str) else self.prune

    @property
    def ranks_by_data(self) -> bool:
        """Whether what ranks the filters that leave is told from data."""
        return self.prune_share > 0 and self.importance in RANKED_BY_DATA

    @property
    def is_searched(self) -> bool:
        """Whether how much is compressed is found by a search with evaluations: see `pipeline.search`."""
        if self.plan is not None:
            return False
        chosen = self.prune == "auto"
        splits = self.prune == 0 and "auto" in (self.tucker, self.svd)
        return chosen or (splits and self.limits_loss and not self.target)

    @property
    def takes_faster_splits(self) -> bool:
        """Whether each split is taken or not by itself, where times are known by whether it is faster."""
        return not self.target and "auto" in (self.tucker, self.svd)

    @property
    def limits_loss(self) -> bool:
        """Whether accuracy, or what the outputs hold, may only be lost up to a limit."""
        return self.max_drop is not None or self.max_error is not None

    def to_json(self) -> dict[str, Any]:
        """Return every field as JSON holds it, null where it is not set."""
        values = {name: getattr(self, name) for name in options_of(Recipe)}
        return {n: None if v is None else options_of(Recipe)[n].kind.plain(v) for n, v in values.items()}

    def to_toml(self) -> str:
        """Return a recipe file that reads back as this recipe; keys at their default are left out."""
        default = Recipe().to_json()
        return emit_toml({n.replace("_", "-"): v for n, v in self.to_json().items() if v != default[n]})


def _checked(kind: Kind, value: Any, default: Any, where: str) -> Any:
    """A value that is the default because nothing was asked for (None) is not the kind's business."""
    return None if value is None and default is None else kind.checked(value, where)


def _default(name: str) -> Any:
    found = next(f for f in fields(Recipe) if f.name == name)
    return found.default_factory() if found.default_factory is not MISSING else found.default


def _suggestion(name: str, known: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0].replace('_', '-')}'?" if close else ""
