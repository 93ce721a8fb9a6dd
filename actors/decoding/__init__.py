"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: pictures from strangers, decoded in processes that may die or hang.
"""
