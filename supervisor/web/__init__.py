"""The dashboard, /metrics and /healthz of `supervisor.http`. Looks only: nothing here gives an order."""
