"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: benchmarks, a leaf nobody imports.
"""
