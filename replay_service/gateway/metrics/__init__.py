"""Metrics of the service, for Prometheus.

| module | holds |
| --- | --- |
| `table` | every metric: name, kind, labels, meaning |
| `process` | counters of one process: requests, and the work of owners |
| `run_numbers` | what a run's state tells, made in the background |
| `exposition` | the text format |
| `scrape` | one answer of `/metrics`, of all processes of the service |
"""
