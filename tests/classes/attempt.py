"""One thing tried: what came of it, in one of five words, with the reason and the seconds."""

from __future__ import annotations

import re
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fxprune.errors import FxpruneError, OracleError, TraceError

VERDICTS = ("ok", "refused", "wrong", "raw", "none")
LONGEST = 600


class NothingThere(Exception):  # noqa: N818
    """There is nothing of that sort in the model, or nothing to try it on."""


class Mismatch(Exception):  # noqa: N818
    """Numbers are not what they should be, and nothing was said."""


@dataclass(frozen=True)
class Stage:
    """What came of a stage.

    Attributes:
        name: of the stage.
        verdict: ``ok``; ``refused`` (the library says why); ``wrong`` (a proof fails); ``raw`` (any
            other exception); ``none`` (nothing of that sort there); or ``timeout``.
        detail: the reason; a note if all is well.
        seconds: how long it took.
    """

    name: str
    verdict: str
    detail: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}" + (f" ({self.detail})" if self.detail else "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def attempt(name: str, function: Callable[[], Any], *, proof: bool = False) -> tuple[Stage, Any]:
    """Call something of the library; an exception becomes a verdict.

    Args:
        name: of the stage.
        function: gives a value. If that is text it is the note.
        proof: the function proves something: a graph that is not its model is wrong, not refused.

    Returns:
        What came of it, and the value; None if there is none.
    """
    start = time.perf_counter()
    value = None
    try:
        value = function()
        verdict, detail = "ok", value if isinstance(value, str) else ""
    except NothingThere as error:
        verdict, detail = "none", message(error)
    except (Mismatch, OracleError) as error:
        verdict, detail = "wrong", message(error)
    except FxpruneError as error:
        verdict = "wrong" if proof and isinstance(error, TraceError) else "refused"
        detail = f"{type(error).__name__}: {message(error)}"
    except Exception as error:
        verdict, detail = "raw", f"{type(error).__name__}: {message(error)}{_where(error)}"
    return Stage(name, verdict, detail, round(time.perf_counter() - start, 2)), value


def message(error: BaseException) -> str:
    """The text of an error in one line, without the paths of this machine."""
    text = re.sub(r"[^\s'\"(]*/site-packages/", "", " ".join(str(error).split()))
    folder = re.escape(tempfile.gettempdir()) + r"/\w+/(\.m\.\w+/new|m)"
    return re.sub(folder, "FOLDER", text)[:LONGEST]


def _where(error: BaseException) -> str:
    """The innermost line of the library, and that of whatever it called."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/fxprune/" in f.filename]
    places = []
    for frame in (*ours[-1:], *frames[-1:]):
        path = frame.filename.replace("\\", "/")
        for root in ("site-packages/", "fxprune/", "tests/"):
            if root in path:
                kept = root if root != "site-packages/" else ""
                path = kept + path.rpartition(root)[2]
                break
        places.append(f"{path}:{frame.lineno}")
    return f" [{', '.join(dict.fromkeys(places))}]" if places else ""
