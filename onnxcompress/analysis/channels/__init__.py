"""Which channels belong together, and what removing them changes."""

from onnxcompress.analysis.channels.analysis import ChannelAnalysis, ConstantUse, Consumer, Producer
from onnxcompress.analysis.channels.groups import ChannelGroups, Group, find_groups
from onnxcompress.analysis.channels.labels import FIXED, Labels
from onnxcompress.analysis.channels.members import Member, group_members
from onnxcompress.analysis.channels.surgery import Surgery

__all__ = [
    "FIXED",
    "ChannelAnalysis",
    "ChannelGroups",
    "ConstantUse",
    "Consumer",
    "Group",
    "Labels",
    "Member",
    "Producer",
    "Surgery",
    "find_groups",
    "group_members",
]
