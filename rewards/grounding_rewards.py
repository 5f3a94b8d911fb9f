"""The rewards about boxes, points and falsified captions; importing this module registers them."""

from mmreason.rewards.abstention import abstention
from mmreason.rewards.box_set_f1 import box_set_f1
from mmreason.rewards.caption_critic import caption_critic
from mmreason.rewards.density_f1 import density_f1
from mmreason.rewards.detection_iou import detection_iou
from mmreason.rewards.detection_map import detection_map
from mmreason.rewards.detection_weighted import detection_weighted
from mmreason.rewards.giou import giou
from mmreason.rewards.iou_above import iou_above
from mmreason.rewards.knowledge_iou import knowledge_iou
from mmreason.rewards.point_in_box import point_in_box

__all__ = [
    "abstention",
    "box_set_f1",
    "caption_critic",
    "density_f1",
    "detection_iou",
    "detection_map",
    "detection_weighted",
    "giou",
    "iou_above",
    "knowledge_iou",
    "point_in_box",
]
