"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: fan-out → re-rank → hits. Each stage is a pure function on plain arrays; `reranker`
fetches what they need and calls them in order.
"""
