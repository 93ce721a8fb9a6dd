"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: dashboards and alerts over all of it, generated from the metric names of contract/telemetry.py.
"""
