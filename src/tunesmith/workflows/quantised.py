"""What a quantised base and the eight-bit optimiser ask for, checked before anything is loaded."""

from __future__ import annotations

import importlib.util

from tunesmith.config.schema import FineTuningConfig
from tunesmith.errors import UsageError

PACKAGE = "bitsandbytes"
INSTALL = "pip install 'tunesmith[quant]'"


def asked_bits(config: FineTuningConfig) -> str | None:
    """Return 4bit or 8bit, or None for a base as it is."""
    return "4bit" if config.load_in_4bit else "8bit" if config.load_in_8bit else None


def check_quantised(config: FineTuningConfig) -> None:
    """Refuse what does not go with quantised weights, and a package that is missing."""
    bits = asked_bits(config)
    flag = f"--load-in-{bits}"
    if bits and not config.lora:
        raise UsageError(
            f"{flag} needs --lora: quantised weights cannot be trained, an adapter on them can.",
            hint=f"{flag} --lora",
        )
    if bits and config.lora_init == "pissa":
        raise UsageError(
            f"{flag} and --lora-init pissa cannot both be given: PiSSA takes its start out of the "
            "weights, and quantised ones cannot be changed.",
            hint="leave one of them out",
        )
    if config.load_in_8bit and config.use_dora:
        raise UsageError(
            "--load-in-8bit and --use-dora cannot both be given: DoRA measures the weights, and "
            "PEFT loses the scales of eight-bit ones when it does.",
            hint="--load-in-4bit, or leave --use-dora out",
        )
    needs = flag if bits else "--optim adamw_8bit" if config.optim == "adamw_8bit" else None
    if needs and importlib.util.find_spec(PACKAGE) is None:
        raise UsageError(f"{needs} needs the package {PACKAGE}, which is missing.", hint=INSTALL)
