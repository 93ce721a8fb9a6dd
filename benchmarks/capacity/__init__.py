"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: what the capacity planner has to know of this code, measured: bytes, service times, a small cluster.
"""
