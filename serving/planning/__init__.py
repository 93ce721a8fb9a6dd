"""Pipeline: upload → image-events → streams → embedders → embedding-log → shards → fan-out → hits.

You are here: what a deployment of a given size needs. Pure: figures from measured constants, and a
simulation of the fan-out that follows the rules by which `serving` gathers, chooses and hedges.
"""
