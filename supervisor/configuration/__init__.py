"""From a file to a frozen AppSpec, as a visible pipeline. Nothing is started here.

read -> include -> interpolate -> defaults -> decode -> expand -> validate
"""

from __future__ import annotations

from smartipc.supervisor.configuration.load import load as load
from smartipc.supervisor.configuration.schema import schema as schema
