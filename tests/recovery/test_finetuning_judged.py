"""When fine-tuning keeps what it came to: what it won on samples held out is more than chance explains."""

from __future__ import annotations

from dataclasses import replace

from onnxcompress.passes.recovery.finetuning import doubted
from tests.recovery.small_classifier import accuracy, samples
from tests.recovery.test_finetuning import CONFIG, fine_tune, refitted


def test_what_chance_may_turn_falls_with_the_number_of_judges() -> None:
    assert [doubted(judges) for judges in (5, 30, 60, 120)] == [16.0, 16.0, 4.0, 1.0]


def test_a_network_that_errs_little_is_trained() -> None:
    """So few of its answers are wrong that 16 cannot turn to right."""
    count, seed = 300, 23
    start = refitted(count, seed)
    result, outcome = fine_tune(
        replace(CONFIG, rate=1e-2),
        start,
        training=samples(count, seed, labels=True),
        calibration=samples(count, seed),
    )
    before, after = outcome["score"]
    assert after < before
    assert accuracy(result.model) > accuracy(start) + 0.01
