"""The one place where OpenVINO and NNCF are imported: without their telemetry.

Both hold that who has not declined has agreed, and would tell Google Analytics of every model that is converted or
compressed (openvino/tools/ovc/telemetry_utils.py, nncf/telemetry/wrapper.py). A benchmark says nothing to anybody: it
runs other people's models, on nodes that may have no network, where sending would be timed as well.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

TELEMETRY: Final = "openvino_telemetry"


def silent(package: str) -> Any:
    """Import `openvino` or `nncf`, which find no telemetry package and take their own empty ones instead."""
    sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]  # importing it raises ImportError from now on
    return importlib.import_module(package)
