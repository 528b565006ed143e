"""The admin process: /metrics, /healthz and /readyz over HTTP; mail never waits for it."""
