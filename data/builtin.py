"""Imports the built-in tasks so that they register themselves, exactly as a plug-in would."""

from mmreason.data import grounding, scene_caption, scene_qa

__all__ = ["grounding", "scene_caption", "scene_qa"]
