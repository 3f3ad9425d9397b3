"""Find the function that a config's `target: module:function` names, with errors that say what is missing.

Only importing and looking up. Calling the function, and judging its flavour beyond async or blocking, is the
runtimes' business.
"""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable
from typing import Any, Literal


class TargetError(Exception):
    """The target cannot be loaded; `reason` names what is missing and where, `detail` holds a traceback or ""."""

    def __init__(self, target: str, reason: str, detail: str = "") -> None:
        super().__init__(target, reason, detail)
        self.target = target
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"cannot load target {self.target!r}: {self.reason}"


def load_target(target: str) -> Callable[..., Any]:
    """Import the module of `target` and return its function; the part after the colon may hold dots.

    Raises:
        TargetError: the form is wrong, the module or one of its own imports is missing, its code raised, or the
            name in it is missing or not callable.
    """
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise TargetError(target, "expected 'package.module:function'")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise TargetError(target, _missing_module(module_name, error), traceback.format_exc()) from error
    except Exception as error:
        reason = f"importing {module_name} raised {type(error).__name__}: {error}"
        raise TargetError(target, reason, traceback.format_exc()) from error
    walked = module_name
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise TargetError(target, f"{walked} has no attribute {name!r}") from error
        walked = f"{walked}.{name}"
    if not callable(found):
        raise TargetError(target, f"{walked} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _missing_module(wanted: str, error: ModuleNotFoundError) -> str:
    missing = error.name or wanted
    if wanted == missing or wanted.startswith(missing + "."):
        return f"no module named {missing!r} on python_path or among the installed packages"
    return f"{wanted} imports {missing!r}, which is not installed"


def flavour(function: Callable[..., Any]) -> Literal["async", "blocking"]:
    """Tell whether calling the function gives a coroutine; sees through partials and callable objects."""
    inner: Any = inspect.unwrap(function)
    while hasattr(inner, "func"):
        inner = inner.func
    if inspect.iscoroutinefunction(inner):
        return "async"
    call = None if inspect.isroutine(inner) or inspect.isclass(inner) else getattr(inner, "__call__", None)  # noqa: B004 - its signature is wanted
    return "async" if inspect.iscoroutinefunction(call) else "blocking"


def check(target: str) -> None:
    """Load a target and exit with 1 and one line on stderr if that fails; for `smartipc check --import`."""
    try:
        load_target(target)
    except TargetError as error:
        raise SystemExit(str(error)) from None
