"""Imports the built-in tasks so that they register themselves, exactly as a plug-in would."""

from mmreason.data import (
    caption_critic,
    counting,
    detection,
    grounding,
    image_quality,
    knowledge_grounding,
    multi_image_grounding,
    random_calculation,
    referring,
    scene_caption,
    scene_qa,
    time_series,
)

__all__ = [
    "caption_critic",
    "counting",
    "detection",
    "grounding",
    "image_quality",
    "knowledge_grounding",
    "multi_image_grounding",
    "random_calculation",
    "referring",
    "scene_caption",
    "scene_qa",
    "time_series",
]
