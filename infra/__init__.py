"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: what surrounds it where it runs, a leaf nobody imports.
"""
