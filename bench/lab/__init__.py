"""The lab: how well it learns, against what a user would pick instead."""
