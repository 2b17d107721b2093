"""Engines that sample actions, batching around them, and routing to them."""
