"""Reward and metric networks, and where weights are found.

A constructor locates its weights, and raises `UsageError` where they are missing; they are loaded at first use. Networks are
frozen, in fp32 and in evaluation mode; two instances of the same weights on the same device share one network.
"""
