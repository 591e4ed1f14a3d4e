"""The language of a text, told by langdetect's bundled profiles, the same one every time."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunesmith.errors import UsageError

PACKAGE = "langdetect"
_CODES = (
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr "
    "ne nl no pa pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw"
)
LANGUAGES = frozenset(_CODES.split())
"""Codes that can be told apart."""
SEED = 0
_KEPT = 4096
"""Verdicts kept, since an answer is asked for several constraints and in several forms."""


def response_language(text: str, language: str) -> bool:
    """Say whether a text is in the language of this code; ``zh`` is either script of Chinese."""
    return is_language(text, language)


def is_language(text: str, code: str) -> bool:
    """Say whether a text is most likely in a language; one without letters is in none."""
    found = detect(text)
    return found is not None and (found == code or found.partition("-")[0] == code)


def check_detector() -> None:
    """Raise ``UsageError`` where the package that tells languages is not installed."""
    if find_spec(PACKAGE) is None:
        raise UsageError(
            f"Some of these constraints ask for a language, and {PACKAGE}, which tells languages, "
            "is not installed.",
            hint="pip install 'tunesmith[ifeval]', or leave out the rows that name a language",
        )


@lru_cache(maxsize=_KEPT)
def detect(text: str) -> str | None:
    """Return the code of a text's most likely language; None for a text without words."""
    check_detector()
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    try:
        detector.append(text)
        code = str(detector.detect())
    except LangDetectException:
        return None
    return None if code == "unknown" else code


@lru_cache(maxsize=1)
def _factory() -> Any:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    # In one order, and with a seed of its own: the package's shared one draws anew every time.
    files = sorted(file for file in Path(PROFILES_DIRECTORY).iterdir() if file.is_file())
    factory.load_json_profile([file.read_text(encoding="utf-8") for file in files])
    factory.set_seed(SEED)
    return factory
