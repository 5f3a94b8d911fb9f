"""The configuration groups of mmreason, installed as `mmreason.conf`; read by `mmreason.config.compose`.

One folder is one group; `mmreason train task=scene_qa` picks `task/scene_qa.yaml`. Files carry only what
differs from the defaults in `mmreason/config/schema.py`, which Hydra sees as the base config `schema`.
"""
